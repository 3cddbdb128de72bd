//! redis-server: saves itself by forking, again and again, while a client reads and writes everything.

use crate::limited::{Control, Trial};
use crate::support::until;
use crate::watch::{is_long, rounds};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};

/// Each value is as long as three pages, more or less.
const LONGEST: u64 = 16_000;

#[test]
fn what_is_saved_while_it_changes_reloads_identical() {
    let test = "what_is_saved_while_it_changes_reloads_identical";
    if let Some(trial) = Trial::new(test, &["redis-server"]) {
        saves_and_reloads(&trial);
    }
}

pub(crate) fn saves_and_reloads(trial: &Trial) {
    let (mib, limit): (u64, _) = if is_long() { (300, "100M") } else { (40, "16M") };
    let keys = mib * (1 << 20) / (LONGEST / 2);
    let words = words(trial, "first");
    let mut run = trial.watch.start(
        trial.managed(limit, &words.iter().map(String::as_str).collect::<Vec<_>>()).stdout(Stdio::null()),
    );
    let mut client = Client::connect(&trial.place.path("first.socket"));

    let mut versions = vec![0; usize::try_from(keys).unwrap()];
    for key in 0..keys {
        client.set(key, 0);
    }
    let mut random = 1;
    for _ in 0..rounds(3, 10) {
        let began = client.ask(&[b"BGSAVE"]);
        assert!(began.starts_with(b"Background saving"), "{}", String::from_utf8_lossy(&began));
        for key in 0..keys {
            client.check(key, versions[usize::try_from(key).unwrap()]);
            random = next(random);
            if random % 4 == 0 {
                let changed = random % keys;
                let version = &mut versions[usize::try_from(changed).unwrap()];
                *version += 1;
                client.set(changed, *version);
            }
        }
        client.await_saved();
    }
    for key in 0..keys {
        client.check(key, versions[usize::try_from(key).unwrap()]);
    }

    // The child is gone: what they shared can go again, and does.
    let mut control = Control::open(&trial.place.path("control")).unwrap();
    let mut clients = control.ask(r#"{"do":"clients"}"#).unwrap();
    let pid = clients[0]["pid"].take();
    let out = std::cell::RefCell::new(control);
    until("cold pages leave again", || {
        out.borrow_mut().ask(&format!(r#"{{"do":"evict","pid":{pid}}}"#));
        let clients = out.borrow_mut().ask(r#"{"do":"clients"}"#)?;
        let moved_out = clients[0]["moved_out_bytes"].as_u64()?;
        (moved_out >= (mib << 20) / 4 * 3).then_some(())
    });

    assert_eq!(client.ask(&[b"SAVE"]), b"OK");
    client.shut_down();
    assert!(end(&mut run));
    trial.report().assert_sound();

    // One that runs by itself reads what was saved.
    std::fs::rename(trial.place.path("first.rdb"), trial.place.path("second.rdb")).unwrap();
    let second = self::words(trial, "second");
    let second: Vec<&str> = second.iter().map(String::as_str).collect();
    let mut plain = trial.watch.start(trial.command(&second).stdout(Stdio::null()));
    let mut client = Client::connect(&trial.place.path("second.socket"));
    assert_eq!(client.ask(&[b"DBSIZE"]), keys.to_string().as_bytes());
    for key in 0..keys {
        client.check(key, versions[usize::try_from(key).unwrap()]);
    }
    client.shut_down();
    assert!(end(&mut plain));
    trial.place.assert_clean();
}

fn words(trial: &Trial, name: &str) -> Vec<String> {
    let socket = trial.place.at(&format!("{name}.socket"));
    let dump = format!("{name}.rdb");
    let directory = trial.place.at("");
    let words = ["redis-server", "--port", "0", "--unixsocket", &socket, "--dir", &directory, "--dbfilename"];
    let rest = [&*dump, "--save", "", "--appendonly", "no", "--daemonize", "no", "--rdbcompression", "no"];
    words.into_iter().chain(rest).map(str::to_owned).collect()
}

fn end(child: &mut Child) -> bool {
    child.wait().unwrap().success()
}

fn next(random: u64) -> u64 {
    let mut random = random ^ random << 13;
    random ^= random >> 7;
    random ^ random << 17
}

/// What a key holds in its so-manieth version.
fn value(key: u64, version: u64) -> Vec<u8> {
    let mut random = next((key + 1) << 20 | (version + 1));
    let length = random % LONGEST;
    let mut bytes = Vec::new();
    while bytes.len() < usize::try_from(length).unwrap() {
        random = next(random);
        // Of each word a part is the same as in many others.
        bytes.extend_from_slice(&(random & 0x00ff_00ff_0000_ffff).to_le_bytes());
    }
    bytes
}

/// A client that speaks as much of redis's language as is needed.
struct Client {
    socket: BufReader<UnixStream>,
}

impl Client {
    fn connect(path: &Path) -> Self {
        let socket = until("redis listens", || UnixStream::connect(path).ok());
        let mut client = Self { socket: BufReader::new(socket) };
        // While it loads it answers nothing else.
        while client.ask(&[b"PING"]) != b"PONG" {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        client
    }

    fn tell(&mut self, words: &[&[u8]]) {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        self.socket.get_mut().write_all(&bytes).unwrap();
    }

    /// A string, a number, or an error with its words.
    fn ask(&mut self, words: &[&[u8]]) -> Vec<u8> {
        self.tell(words);
        let mut line = String::new();
        self.socket.read_line(&mut line).unwrap();
        let (kind, rest) = line.trim_end().split_at(1);
        if kind != "$" {
            return rest.as_bytes().to_vec();
        }
        let mut bytes = vec![0; rest.parse::<usize>().unwrap() + 2];
        self.socket.read_exact(&mut bytes).unwrap();
        bytes.truncate(bytes.len() - 2);
        bytes
    }

    fn set(&mut self, key: u64, version: u64) {
        let answer = self.ask(&[b"SET", key.to_string().as_bytes(), &value(key, version)]);
        assert_eq!(answer, b"OK", "{}", String::from_utf8_lossy(&answer));
    }

    #[track_caller]
    fn check(&mut self, key: u64, version: u64) {
        let (is, should) = (self.ask(&[b"GET", key.to_string().as_bytes()]), value(key, version));
        let at = is.iter().zip(&should).position(|(one, other)| one != other);
        assert!(is == should, "key {key}: {} bytes, not {}, differs at {at:?}", is.len(), should.len());
    }

    /// Waits until the child that saves is done, and was.
    fn await_saved(&mut self) {
        loop {
            let info = self.ask(&[b"INFO", b"persistence"]);
            let info = String::from_utf8(info).unwrap();
            if info.contains("rdb_bgsave_in_progress:0") {
                assert!(info.contains("rdb_last_bgsave_status:ok"), "{info}");
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn shut_down(mut self) {
        self.tell(&[b"SHUTDOWN", b"NOSAVE"]);
        let mut rest = Vec::new();
        let _ = self.socket.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    }
}
