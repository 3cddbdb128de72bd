//! The contract between userswap and a backing store.
