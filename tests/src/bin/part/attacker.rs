//! Somebody without any privilege, whose user is allowed to connect, and who means harm. Each word it is told is an attack.

use std::os::fd::{AsFd, OwnedFd};
use userswap_ipc::contract::{MemoryRegion, TransferUserfaultFd};
use userswap_ipc::extension::{Hello, VERSION};
use userswap_ipc::wire::{MAX_MESSAGE_BYTES, RequestId, ToDaemon};
use userswap_ipc::{Connection, TransportError, Wait};
use userswap_tests::random::Random;
use userswap_tests::watch::LONG;
use userswap_uffd::{Mapping, OpenMode, Protection, RawUffd};

/// Connections kept open, and messages sent, where it is their number that is to do harm.
const MANY: u64 = 300;

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
