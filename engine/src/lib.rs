//! The userswap engine: page states, the fault path, moving out, paged regions.
