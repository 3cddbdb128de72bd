//! The stand-alone fault-loop benchmark of userswap.
