//! The userspace-swap contract: messages in Mojo's layout, transport, client end.
