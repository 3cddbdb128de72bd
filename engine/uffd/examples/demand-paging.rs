//! A region whose pages are made the moment they are touched: page `n` is full of the byte `n`.

use userswap_uffd::{
    CopyMode, Features, Mapping, Message, OpenMode, Protection, RegisterMode, Uffd, page_size,
};

const PAGES: u8 = 8;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // User mode only: needs no privilege, and serves everything but faults inside system calls.
    let uffd = Uffd::open(Features::THREAD_ID, OpenMode::UserModeOnly)?;
    let memory = Mapping::new(u64::from(PAGES) * page_size() as u64, Protection::READ_WRITE)?;
    let (span, start) = (memory.span(), memory.as_ptr().as_ptr() as usize);
    // SAFETY: nobody else knows of the memory, and this thread, which doesn't touch it, serves its faults until the other has ended.
    unsafe { uffd.register(span, RegisterMode::MISSING) }?;

    let toucher = std::thread::spawn(move || -> u64 {
        let byte =
            |page: u8| std::ptr::with_exposed_provenance::<u8>(start + usize::from(page) * page_size());
        // SAFETY: within the mapping, which outlives this thread.
        (0..PAGES).map(|page| u64::from(unsafe { byte(page).read_volatile() })).sum()
    });

    let mut messages = Vec::new();
    while !toucher.is_finished() {
        uffd.read_messages(&mut messages)?;
        for message in messages.drain(..) {
            if let Message::Fault(fault) = message {
                let page = u8::try_from(span.page_index(fault.addr).unwrap_or(0))?;
                println!("thread {:?} wants page {page}", fault.thread);
                let outcome = uffd.copy(fault.addr, &vec![page; page_size()], CopyMode::default());
                assert!(outcome.is_complete(), "{outcome:?}");
            }
        }
    }
    println!("sum {}", toucher.join().map_err(|_| "the thread panicked")?);
    Ok(())
}
