//! A userfaultfd fault-servicing engine with pluggable backing stores.
