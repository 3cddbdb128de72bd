//! Pure decisions for userswap: what to move, when, within which budget.
