//! What the console of a machine tells about its end.

/// How the guest's kernel panicked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Panic {
    /// The line that says why: the first trouble of the kernel, or the panic itself if there is none.
    pub(crate) cause: String,
    /// Whether the kernel is to blame. It is not when its first process ended or memory ran out.
    pub(crate) kernel_is_wrong: bool,
}

/// The panic on this console, if there is one.
pub(crate) fn find_panic(console: &str) -> Option<Panic> {
    let lines: Vec<&str> = console.lines().map(without_timestamp).collect();
    let panic = lines.iter().position(|line| line.starts_with("Kernel panic - not syncing"))?;
    let of_user_space = [
        "Attempted to kill init",
        "No working init",
        "Requested init",
        "Out of memory",
        "System is deadlocked on memory",
    ];
    if of_user_space.iter().any(|reason| lines[panic].contains(reason)) {
        return Some(Panic { cause: lines[panic].to_owned(), kernel_is_wrong: false });
    }
    // An oops panics with the words "Fatal exception": what came before it says more.
    let oops = lines[..panic].iter().rfind(|line| line.starts_with("BUG: ") || line.starts_with("kernel BUG at "));
    let cause = oops.filter(|_| lines[panic].contains("Fatal exception")).unwrap_or(&lines[panic]);
    Some(Panic { cause: (*cause).to_owned(), kernel_is_wrong: true })
}

/// What init writes into the log when a row starts, so that the console tells what belongs to it.
pub(crate) fn start_mark(label: &str) -> String {
    format!("privet: {label} starts")
}

/// The console from the last start of this row on; all of it if no mark is there.
pub(crate) fn since_start_of<'a>(label: Option<&str>, console: &'a str) -> &'a str {
    let mark = label.and_then(|label| console.rfind(&start_mark(label)));
    let line_of = |mark: usize| console[..mark].rfind('\n').map_or(0, |newline| newline + 1);
    &console[mark.map_or(0, line_of)..]
}

/// The last `count` lines of a console that say something.
pub(crate) fn last_lines(console: &str, count: usize) -> Vec<String> {
    let lines: Vec<&str> = console.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
}

/// A line of the kernel without its `[    1.234567] `.
fn without_timestamp(line: &str) -> &str {
    let line = line.trim_end();
    match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((time, text)) if time.trim_start().bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => text,
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_named() {
        let console =
            "[    1.0] hello\r\n[    2.000001] Kernel panic - not syncing: stack is corrupted\r\n[    2.1] CPU: 0\r\n";
        let cause = "Kernel panic - not syncing: stack is corrupted".into();
        assert_eq!(find_panic(console), Some(Panic { cause, kernel_is_wrong: true }));
    }

    #[test]
    fn an_oops_is_named_by_its_cause() {
        let console = "[    2.0] BUG: kernel NULL pointer dereference, address: 0\n[    2.1] Oops: Oops: 0000\n[    2.2] Kernel panic - not syncing: Fatal exception\n";
        assert_eq!(find_panic(console).unwrap().cause, "BUG: kernel NULL pointer dereference, address: 0");
    }

    #[test]
    fn the_end_of_init_is_not_the_kernels_fault() {
        let console = "[    2.2] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n";
        assert!(!find_panic(console).unwrap().kernel_is_wrong);
    }

    #[test]
    fn talk_is_no_panic() {
        assert_eq!(find_panic("a row said: Kernel panic - not syncing\n[    1.0] fine\n"), None);
        assert_eq!(find_panic(""), None);
    }

    #[test]
    fn a_row_gets_the_console_since_its_last_start() {
        let console = "[1.0] privet: a starts\n[1.1] old\n[2.0] privet: b starts\n[2.1] privet: a starts\n[2.2] new\n";
        assert_eq!(since_start_of(Some("a"), console), "[2.1] privet: a starts\n[2.2] new\n");
        for without_mark in [Some("c"), None] {
            assert_eq!(since_start_of(without_mark, console), console);
        }
    }

    #[test]
    fn the_last_lines_are_those_that_say_something() {
        assert_eq!(last_lines("a\r\n\r\nb\r\nc\r\n\r\n", 2), ["b", "c"]);
        assert!(last_lines("", 2).is_empty());
    }
}
