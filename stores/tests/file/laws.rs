//! The kit's laws, for each of its kinds.

use std::sync::Arc;

use userswap_store::Store;
use userswap_store::testkit::Ask;
use userswap_stores::file::{Disturb, Disturbance, File};

use crate::support::{spec, temporary};

fn file(options: &'static str, page_size: usize) -> impl Fn(&Ask) -> Arc<dyn Store> + Sync {
    move |ask| {
        let size = ask.capacity.unwrap_or(64 << 20);
        let spec = spec(&format!("{}?reserve=0&size={size}{options}", temporary()));
        Arc::new(File::open(&spec, page_size).unwrap())
    }
}

mod compressed_and_encrypted {
    userswap_store::conformance!(super::file("", 4096));
}

mod encrypted {
    userswap_store::conformance!(super::file("&compress=off", 4096));
}

mod compressed {
    userswap_store::conformance!(super::file("&encrypt=off", 4096));
}

mod plain {
    userswap_store::conformance!(super::file("&compress=off&encrypt=off", 4096));
}

mod by_the_page_cache {
    userswap_store::conformance!(super::file("&direct=off", 4096));
}

mod large_pages {
    userswap_store::conformance!(super::file("", 16384));
}

mod small_pages {
    userswap_store::conformance!(super::file("", 512));
}

#[cfg(feature = "ram-zstd")]
mod zstd {
    userswap_store::conformance!(super::file("&compress=zstd", 4096));
}

/// Small segments, so that the laws meet written ones, and a ring that dies now and then.
mod while_the_ring_dies {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Now(AtomicU64);

    impl Disturb for Now {
        fn disturb(&self, _: bool, _: u64, _: usize) -> Disturbance {
            let dies = self.0.fetch_add(1, Ordering::Relaxed) % 64 == 63;
            if dies { Disturbance::Panic } else { Disturbance::Short(16384) }
        }
    }

    fn make(ask: &Ask) -> Arc<dyn Store> {
        let size = ask.capacity.unwrap_or(8 << 20);
        let spec = spec(&format!("{}?reserve=0&size={size}", temporary()));
        Arc::new(File::open_disturbed(&spec, 4096, Arc::new(Now(AtomicU64::new(0)))).unwrap())
    }

    userswap_store::conformance!(make);
}
