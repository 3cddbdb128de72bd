//! Libraries that aren't opened, and the sentences about them.

use std::error::Error;

use crate::support::{Library, Place, compile, template};

/// Why it isn't opened.
fn why(library: &Library, options: &str) -> String {
    let Err(error) = library.open(options) else { panic!("it is opened") };
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(reason) = source {
        text = format!("{text}: {reason}");
        source = reason.source();
    }
    text
}

fn assert_refused(test: &str, defines: &[&str], sentence: &str) {
    let Some(library) = compile(test, "tests/plugin/nonsense.c", defines) else { return };
    let text = why(&library, "");
    assert!(text.ends_with(sentence) && text.contains("store.so"), "{text}");
}

#[test]
fn another_version() {
    let sentence = "it speaks version 7 of the plug-in interface, and here version 1 is spoken";
    assert_refused("another_version", &["-DABI=7", "-DSIZE=8"], sentence);
}

#[test]
fn one_that_knows_it_is_another_version() {
    let sentence = "it doesn't speak version 1 of the plug-in interface, the one that is spoken here";
    assert_refused("one_that_knows_it_is_another_version", &["-DNOTHING", "-Wno-unused"], sentence);
}

#[test]
fn a_table_that_is_too_small() {
    let sentence = "its table has 24 bytes, and one of version 1 has 80 or more";
    assert_refused("a_table_that_is_too_small", &["-DSIZE=24"], sentence);
}

/// Of the same version, with functions that aren't known here.
#[test]
fn a_table_that_is_larger_is_fine() {
    let test = "a_table_that_is_larger_is_fine";
    let Some(library) = compile(test, "tests/plugin/nonsense.c", &["-DSIZE=4096"]) else { return };
    assert_eq!(&*library.open("").unwrap().capabilities().name, "plugin:nonsense");
}

#[test]
fn a_function_that_is_missing() {
    let defines = ["-DGET=NULL", "-Wno-unused"];
    assert_refused("a_function_that_is_missing", &defines, "it lacks the function get");
}

#[test]
fn no_plug_in() {
    let sentence = "it is no plug-in: there is no userswap_store_plugin in it";
    assert_refused("no_plug_in", &["-DSYMBOL=something_else"], sentence);
}

#[test]
fn no_library() {
    let place = Place::new();
    let path = place.path("store.so");
    let library = Library { path: path.clone(), _place: None };
    let text = why(&library, "");
    assert!(text.contains("No such file"), "{text}");
    std::fs::write(&path, "a text").unwrap();
    let text = why(&library, "");
    assert!(text.contains("store.so"), "{text}");
}

#[test]
fn what_makes_no_store() {
    let Some(library) = compile("what_makes_no_store", "tests/plugin/nonsense.c", &[]) else { return };
    for (options, sentence) in [
        ("wrong=refused", "not on a  [31mMonday"),
        ("wrong=open", "the answer -5, which there isn't"),
        ("wrong=flags", "it has the capabilities 0x40000000, which there aren't"),
        ("wrong=unlimited&capacity=1M", "it can't be held to 1048576 bytes"),
    ] {
        let text = why(&library, options);
        assert!(text.ends_with(sentence), "{options}: {text}");
    }
    assert!(why(&template(), "speed=11").ends_with("reading the options failed: there is no option speed"));
}
