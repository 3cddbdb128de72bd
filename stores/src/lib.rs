//! Backing stores for userswap: compressed RAM and more.
