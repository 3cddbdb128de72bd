//! The kit's laws, a test each.

use std::sync::Arc;

use store_template::Template;
use userswap_store::Store;
use userswap_store::testkit::Ask;

userswap_store::conformance!(|ask: &Ask| -> Arc<dyn Store> { Arc::new(Template::new(4096, ask.capacity)) });
