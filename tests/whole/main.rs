//! Whole-system tests against the real kernel, one module a behaviour.

mod region;
