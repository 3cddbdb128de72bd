//! Memory of the daemon's own process, adopted beside that of its clients.

use crate::client::Daemon;
use userswap::Contract;
use userswap_tests::own::{free_range, unmap_span};
use userswap_tests::pages::Pages;
use userswap_tests::watch::Watchdog;
use userswap_uffd::{Features, OpenMode, Span, Uffd};

#[test]
fn a_daemon_serves_its_own_memory_beside_its_clients() {
    let _watch = Watchdog::new("a_daemon_serves_its_own_memory_beside_its_clients");
    let wanted = Features::EVENT_REMAP | Features::EVENT_REMOVE | Features::EVENT_UNMAP | Features::MOVE;
    let uffd = match Uffd::open(wanted, OpenMode::Auto) {
        Ok(uffd) if uffd.features().contains(wanted) => uffd,
        _ => {
            println!(
                "SKIPPED a_daemon_serves_its_own_memory_beside_its_clients: no userfaultfd that can do it"
            );
            return;
        }
    };
    let daemon = Daemon::start(Contract::Extended, |builder| builder);
    let mut client = daemon.client();
    let ranges: Vec<Span> = (0..3).map(|_| free_range(64 * 4096).leak()).collect();
    // SAFETY: read-write memory of this test's alone, mapped until its end.
    let pages: Vec<Pages> = ranges.iter().map(|range| unsafe { Pages::new(*range) }).collect();
    // SAFETY: private anonymous mappings that nothing else knows of; no event of theirs is raised before the end of the test.
    let id = unsafe { daemon.server.adopt_own(uffd.try_clone().unwrap(), &ranges) }.unwrap();
    for round in 0..3 {
        for pages in &pages {
            pages.fill_all(|page| page << 8 | (round + 1));
        }
        assert_eq!(daemon.server.evict_own(id, None).unwrap().stored, 192);
        daemon.evict_all(&client);
        for pages in &pages {
            pages.assert_all(|page| page << 8 | (round + 1));
        }
        client.ask("check", "checked");
    }
    assert!(daemon.server.evict_own(id, Some(64 * 4096)).unwrap().stored >= 64);
    assert!(daemon.server.restore_own(id).unwrap() >= 64 * 4096);
    daemon.server.evict_own(id, None).unwrap();
    // SAFETY: as above; these are refused, for they are in care.
    unsafe { daemon.server.adopt_own(uffd.try_clone().unwrap(), &[ranges[0], ranges[0]]) }.unwrap_err();
    daemon.server.drain().unwrap();
    for (range, pages) in ranges.iter().zip(&pages) {
        pages.assert_all(|page| page << 8 | 3);
        uffd.unregister(*range).unwrap();
        unmap_span(*range);
    }
    daemon.nothing_left();
}
