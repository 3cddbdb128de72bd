//! The kit's laws, for each store.
#![cfg(any(feature = "ram-lz4", feature = "ram-zstd"))]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use userswap_store::Store;
use userswap_store::testkit::Ask;
use userswap_stores::ram::{Codec, Ram};

fn ram(codec: Codec, page_size: usize, recoverable: bool) -> impl Fn(&Ask) -> Arc<dyn Store> + Sync {
    move |ask| {
        let mut builder = Ram::with_codec(codec).page_size(page_size).recoverable(recoverable);
        if let Some(bytes) = ask.capacity {
            builder = builder.capacity(bytes);
        }
        Arc::new(builder.build().unwrap())
    }
}

#[cfg(feature = "ram-lz4")]
mod ram_lz4 {
    use super::*;

    userswap_store::conformance!(ram(Codec::Lz4, 4096, false));
}

#[cfg(feature = "ram-lz4")]
mod ram_lz4_recoverable {
    use super::*;

    userswap_store::conformance!(ram(Codec::Lz4, 4096, true));
}

#[cfg(feature = "ram-lz4")]
mod ram_lz4_large_pages {
    use super::*;

    userswap_store::conformance!(ram(Codec::Lz4, 16384, false));
}

#[cfg(feature = "ram-lz4")]
mod ram_lz4_small_pages {
    use super::*;

    userswap_store::conformance!(ram(Codec::Lz4, 512, false));
}

#[cfg(feature = "ram-zstd")]
mod ram_zstd {
    use super::*;

    userswap_store::conformance!(ram(Codec::Zstd { level: -1 }, 4096, false));
}

#[cfg(feature = "ram-zstd")]
mod ram_zstd_dense {
    use super::*;

    userswap_store::conformance!(ram(Codec::Zstd { level: 3 }, 4096, false));
}

#[cfg(feature = "ram-zstd")]
mod ram_zstd_with_dictionaries {
    use super::*;

    userswap_store::conformance!(|ask: &Ask| -> Arc<dyn Store> {
        let mut builder =
            Ram::with_codec(Codec::Zstd { level: 1 }).dictionary(Some(2048)).dictionary_from(12);
        if let Some(bytes) = ask.capacity {
            builder = builder.capacity(bytes);
        }
        Arc::new(builder.build().unwrap())
    });
}
