//! What a row leaves behind in its process. A test program of its own: what other tests open and close meanwhile would be
//! found, too.

use std::fs::File;
use std::process::Command;

use privet_harness::leaks::Holdings;

#[test]
fn what_was_there_before_is_no_leak_and_the_rest_is_named() {
    let kept = File::open("/dev/null").unwrap();
    let before = Holdings::now();
    assert_eq!(before.more_now(), None);
    let leaked = File::open("/dev/zero").unwrap();
    let mut child = Command::new("/bin/true").spawn().unwrap();
    let more = before.more_now().unwrap();
    assert!(more.contains("(/dev/zero)") && more.contains("a child process") && !more.contains("null"), "{more}");
    child.wait().unwrap();
    drop((kept, leaked));
    assert_eq!(before.more_now(), None);
}
