//! Somebody without any privilege, whose user is allowed to connect, and who means harm. Each word it is told is an attack.

use rustix::process::Resource;
use std::os::fd::{AsFd, OwnedFd};
use userswap_ipc::contract::{MemoryRegion, TransferUserfaultFd};
use userswap_ipc::extension::{Hello, VERSION};
use userswap_ipc::wire::{MAX_MESSAGE_BYTES, RequestId, ToDaemon};
use userswap_ipc::{Connection, TransportError, Wait};
use userswap_tests::random::Random;
use userswap_tests::watch::LONG;
use userswap_uffd::succession::{Forked, fork_sharing_files, take_over};
use userswap_uffd::{Mapping, OpenMode, Protection, RawUffd};

/// Connections kept open, and messages sent, where it is their number that is to do harm.
const MANY: u64 = 300;
/// Connections that are more than a process may have by default.
const THOUSANDS: u64 = 3000;

pub(crate) fn run(path: &str) {
    let mut kept = Vec::new();
    println!("ready");
    for line in std::io::stdin().lines() {
        let connect = || Connection::connect(path.as_ref());
        match line.unwrap().as_str() {
            "silence" => kept.extend(connect()),
            "half a handshake" => {
                let connection = connect().unwrap();
                let _ = connection.send_message(hello(), RequestId(1), Wait::For(LONG));
                kept.push(connection);
            }
            "crowd" => (0..MANY).for_each(|_| kept.extend(connect())),
            "thousands" => thousands(&connect, &mut kept),
            "borrow" => {
                let (connection, pid) = borrowed(path);
                println!("gone {pid}");
                kept.push(connection);
                continue;
            }
            "speak as it" => {
                if let Some(connection) = kept.pop() {
                    take_part(&connection);
                    kept.push(connection);
                }
            }
            "flood" => flood(path),
            "spin" => (0..2).for_each(|_| {
                drop(std::thread::spawn(|| {
                    loop {
                        std::hint::spin_loop()
                    }
                }))
            }),
            "noise" => noise(&connect),
            "greetings" => {
                let connection = connect().unwrap();
                for number in 0..MANY {
                    if connection.send_message(hello(), RequestId(number), Wait::No).is_err() {
                        break;
                    }
                }
                kept.push(connection);
            }
            "descriptors" => descriptors(&connect),
            "areas" => areas(&connect),
            "answers" => {
                let connection = connect().unwrap();
                let used = vec![MemoryRegion::new(0, u64::MAX), MemoryRegion::new(u64::MAX - 4095, 4096)];
                for number in 0..MANY {
                    let answer = ToDaemon::<OwnedFd>::SuperPagesUsed(used.clone());
                    if connection.send_message(answer, RequestId(number), Wait::No).is_err() {
                        break;
                    }
                }
            }
            "leave" => kept.clear(),
            _ => return,
        }
        println!("done");
    }
}

/// As many connections as this process may have, each third with half a handshake.
fn thousands(connect: &dyn Fn() -> Result<Connection, TransportError>, kept: &mut Vec<Connection>) {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum.map(|most| most.min(THOUSANDS + 64));
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
    for number in 0..THOUSANDS {
        let Ok(connection) = connect() else { break };
        if number % 3 == 0 {
            let _ = connection.send_message(hello(), RequestId(number), Wait::No);
        }
        kept.push(connection);
    }
}

/// A connection of a process that is gone, and the number it had.
fn borrowed(path: &str) -> (Connection, i32) {
    // SAFETY: there is one thread, and of what both processes have open neither closes anything but what it opened.
    match unsafe { fork_sharing_files() }.unwrap() {
        Forked::Child => {
            let connection = Connection::connect(path.as_ref()).unwrap();
            let number = std::os::fd::AsRawFd::as_raw_fd(&connection.as_fd());
            std::mem::forget(connection);
            // The status has eight bits.
            std::process::exit(if number < 256 { number } else { 0 })
        }
        Forked::Parent(pid) => {
            let pid = i32::try_from(pid).unwrap();
            let number = crate::sys::reap_status(pid).unwrap();
            assert_ne!(number, 0, "a descriptor of few bits");
            // SAFETY: the child has opened it and is gone; nobody else knows of it.
            let connection = unsafe { take_over(number) }.unwrap();
            (Connection::from_fd(connection), pid)
        }
    }
}

/// Takes part as by the four calls, as well as anybody can.
fn take_part(connection: &Connection) {
    let area = Mapping::new(101 << 16, Protection::NONE).unwrap();
    let region = MemoryRegion::new(area.span().start(), area.span().len());
    let _ = connection.send_message(hello(), RequestId(1), Wait::For(LONG));
    transfer(connection, RawUffd::create(OpenMode::Auto).ok().map(RawUffd::into_fd), region);
    area.leak();
}

/// Connects, greets and is turned away, for as long as this process lives.
fn flood(path: &str) {
    for _ in 0..2 {
        let path = path.to_owned();
        std::thread::spawn(move || {
            loop {
                let Ok(connection) = Connection::connect(path.as_ref()) else { continue };
                for number in 0..8 {
                    let _ = connection.send_message(hello(), RequestId(number), Wait::No);
                }
            }
        });
    }
}

fn hello() -> ToDaemon<OwnedFd> {
    ToDaemon::Hello(Hello { version: VERSION, wants: u64::MAX })
}

/// Any bytes, of any length there can be, some with descriptors.
fn noise(connect: &dyn Fn() -> Result<Connection, TransportError>) {
    let mut random = Random::new(23);
    for round in 0..64 {
        let Ok(connection) = connect() else { continue };
        let length = if round % 8 == 0 { MAX_MESSAGE_BYTES } else { 1 + random.below(400) as usize };
        let bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
        let pipe = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        let descriptors = vec![pipe.as_fd(); if round % 16 == 0 { 4 } else { 0 }];
        let _ = connection.send(&bytes, &descriptors, Wait::For(LONG));
    }
}

fn transfer(connection: &Connection, handle: Option<OwnedFd>, area: MemoryRegion) {
    let transfer = TransferUserfaultFd { uffd_error: 0, uffd_handle: handle, mmap_error: 0, swap_area: area };
    let _ = connection.send_message(ToDaemon::TransferUserfaultFd(transfer), RequestId(1), Wait::For(LONG));
}

/// Descriptors of other kinds in a userfaultfd's place.
fn descriptors(connect: &dyn Fn() -> Result<Connection, TransportError>) {
    let area = Mapping::new(101 << 16, Protection::NONE).unwrap();
    let area = MemoryRegion::new(area.span().start(), area.span().len());
    let memory = rustix::fs::memfd_create("lie", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let directory = std::fs::File::open("/").unwrap().into();
    for lie in [Some(memory), Some(reader.into()), Some(writer.into()), Some(directory), None] {
        if let Ok(connection) = connect() {
            transfer(&connection, lie, area);
        }
    }
}

/// Areas outside of what a program can have, that wrap around, that aren't of whole pages, where nothing is mapped.
fn areas(connect: &dyn Fn() -> Result<Connection, TransportError>) {
    let len = 101 << 16;
    for (address, length) in [
        (u64::MAX - 4095, len),
        (0xffff_8000_0000_0000, len),
        (0x1_0000_0000, u64::MAX),
        (0x1_0000_0001, len),
        (0, len),
        (0x1_0000_0000, 0),
    ] {
        let uffd = RawUffd::create(OpenMode::Auto).ok().map(RawUffd::into_fd);
        if let Ok(connection) = connect() {
            transfer(&connection, uffd, MemoryRegion { address, length });
        }
    }
}
