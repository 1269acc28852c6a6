//! The library in a program: this one, started again with it preloaded.
#![expect(unsafe_code, reason = "a program that uses /dev/kvm through the C library")]

use std::ffi::{c_int, c_void};
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

const CREATE_VM: u64 = 0xae01;
const CHECK_EXTENSION: u64 = 0xae03;
const CREATE_VCPU: u64 = 0xae41;
const SET_REGION: u64 = 0x4020_ae46;
const RUN: u64 = 0xae80;
const EXIT_INTR: u32 = 10;
const USER_MEMORY: u64 = 3;
const PAGE: usize = 4096;

/// Runs `body` in a process of its own that has the library preloaded.
fn preloaded(test: &str, body: fn()) {
    const CHILD: &str = "PRIVET_MODEL_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let program = std::env::current_exe().unwrap();
    let library = program.parent().unwrap().join("libprivet_model.so");
    assert!(library.is_file(), "{} was not built with this test", library.display());
    let output = Command::new(program)
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env("LD_PRELOAD", library)
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{}: {said}", output.status);
}

fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

fn ioctl(fd: c_int, request: u64, argument: u64) -> Result<c_int, c_int> {
    // SAFETY: structures of the test's own, or numbers.
    match unsafe { libc::ioctl(fd, request, argument) } {
        -1 => Err(errno()),
        result => Ok(result),
    }
}

fn open_kvm() -> c_int {
    // SAFETY: a C string.
    let fd = unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    assert!(fd >= 0, "errno {}", errno());
    fd
}

fn close(fd: c_int) {
    // SAFETY: a descriptor of the test's.
    assert_eq!(unsafe { libc::close(fd) }, 0);
}

/// A VM with a vCPU in real mode that loops on one instruction, and the vCPU's `kvm_run`.
fn looping_guest() -> (c_int, c_int, *mut u8) {
    let kvm = open_kvm();
    let vm = ioctl(kvm, CREATE_VM, 0).unwrap();
    close(kvm);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: new mappings; the code fits.
    let (code, run, vcpu) = unsafe {
        let code = libc::mmap(ptr::null_mut(), PAGE, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        ptr::copy_nonoverlapping([0xebu8, 0xfe].as_ptr(), code.cast(), 2);
        let vcpu = ioctl(vm, CREATE_VCPU, 0).unwrap();
        let run = libc::mmap(ptr::null_mut(), 3 * PAGE, protection, libc::MAP_SHARED, vcpu, 0);
        assert_ne!(run, libc::MAP_FAILED);
        (code, run.cast::<u8>(), vcpu)
    };
    let region = [0u64, 0, PAGE as u64, code as u64];
    ioctl(vm, SET_REGION, region.as_ptr() as u64).unwrap();
    let mut sregs = [0u8; 312];
    ioctl(vcpu, 0x8138_ae83, sregs.as_mut_ptr() as u64).unwrap();
    sregs[..8].fill(0);
    sregs[12..14].fill(0);
    ioctl(vcpu, 0x4138_ae84, sregs.as_ptr() as u64).unwrap();
    let mut regs = [0u64; 18];
    regs[17] = 2;
    ioctl(vcpu, 0x4090_ae82, regs.as_ptr() as u64).unwrap();
    (vm, vcpu, run)
}

fn exit_reason(run: *mut u8) -> u32 {
    // SAFETY: within the first page.
    unsafe { run.add(8).cast::<u32>().read_volatile() }
}

/// Real-mode code: stores to 0x3000, for ever.
const STORE_AND_LOOP: [u8; 5] = [0xa2, 0x00, 0x30, 0xeb, 0xfb];

#[test]
fn memory_that_is_taken_away_under_a_running_guest_is_efault() {
    preloaded("memory_that_is_taken_away_under_a_running_guest_is_efault", || {
        let (vm, vcpu, run) = looping_guest();
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, in which the code fits.
        let memory = unsafe {
            let memory = libc::mmap(ptr::null_mut(), 4 * PAGE, protection, flags, -1, 0);
            ptr::copy_nonoverlapping(STORE_AND_LOOP.as_ptr(), memory.cast(), STORE_AND_LOOP.len());
            memory
        };
        ioctl(vm, SET_REGION, [0u64; 4].as_ptr() as u64).unwrap();
        ioctl(vm, SET_REGION, [0u64, 0, 4 * PAGE as u64, memory as u64].as_ptr() as u64).unwrap();
        let stored_to = memory.wrapping_byte_add(3 * PAGE);
        on_signal(libc::SIGUSR1, count as *const () as usize);
        for round in 0..60 {
            let thread = run_in_thread(vcpu);
            if round % 3 != 0 {
                // Mostly the guest is in the middle of it.
                // SAFETY: within the mapping; nobody in this program has a reference to it.
                unsafe {
                    stored_to.cast::<u8>().write_volatile(0x5a);
                    while stored_to.cast::<u8>().read_volatile() == 0x5a {
                        std::thread::yield_now();
                    }
                }
            }
            let taken = match round % 2 {
                // SAFETY: the test's own page.
                0 => unsafe { libc::munmap(stored_to, PAGE) },
                // SAFETY: as above.
                _ => unsafe { libc::mprotect(stored_to, PAGE, libc::PROT_NONE) },
            };
            assert_eq!(taken, 0);
            assert_eq!(join(thread), -libc::EFAULT as isize, "round {round}");
            assert_eq!(exit_reason(run), 0, "no exit goes with it");
            // SAFETY: the same place again.
            let again = unsafe { libc::mmap(stored_to, PAGE, protection, flags | libc::MAP_FIXED, -1, 0) };
            assert_eq!(again, stored_to);
        }
        let thread = run_in_thread(vcpu);
        signal_until(thread, libc::SIGUSR1, || exit_reason(run) == EXIT_INTR);
        assert_eq!(join(thread), -libc::EINTR as isize);
    });
}

static HANDLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: c_int) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

fn on_signal(signal: c_int, handler: usize) {
    // SAFETY: a handler that only counts, or ends its thread.
    assert_ne!(unsafe { libc::signal(signal, handler) }, libc::SIG_ERR);
}

/// Starts a thread that runs the vCPU, and returns it once it does.
fn run_in_thread(vcpu: c_int) -> libc::pthread_t {
    extern "C-unwind" fn run(vcpu: *mut c_void) -> *mut c_void {
        let result = ioctl(vcpu as usize as c_int, RUN, 0);
        result.unwrap_or_else(|errno| -errno) as isize as *mut c_void
    }
    let mut thread = 0;
    // SAFETY: the C library's function with a start routine that may be unwound.
    unsafe {
        let run: extern "C" fn(*mut c_void) -> *mut c_void = std::mem::transmute(run as *const c_void);
        assert_eq!(libc::pthread_create(&mut thread, ptr::null(), run, vcpu as usize as *mut c_void), 0);
    }
    thread
}

fn join(thread: libc::pthread_t) -> isize {
    let mut result = ptr::null_mut();
    // SAFETY: a thread that nobody else joins.
    assert_eq!(unsafe { libc::pthread_join(thread, &mut result) }, 0);
    result as isize
}

/// Signals a thread until it ends or `done` says so.
fn signal_until(thread: libc::pthread_t, signal: c_int, done: impl Fn() -> bool) {
    while !done() {
        // SAFETY: a thread that has not been joined.
        unsafe { libc::pthread_kill(thread, signal) };
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn a_signal_ends_the_run_and_its_handler_runs() {
    preloaded("a_signal_ends_the_run_and_its_handler_runs", || {
        let (_, vcpu, run) = looping_guest();
        on_signal(libc::SIGUSR1, count as *const () as usize);
        let thread = run_in_thread(vcpu);
        // A signal that comes before the run has begun does not end it: there may be several.
        signal_until(thread, libc::SIGUSR1, || exit_reason(run) == EXIT_INTR);
        assert_eq!(join(thread), -libc::EINTR as isize);
        assert!(HANDLED.load(Ordering::SeqCst) > 0);
    });
}

#[test]
fn a_handler_may_end_its_thread() {
    extern "C-unwind" fn end(_: c_int) {
        HANDLED.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the frames between are the model's ioctl and the start routine, which let it pass.
        unsafe { pthread_exit(ptr::without_provenance_mut(7)) }
    }
    unsafe extern "C-unwind" {
        fn pthread_exit(value: *mut c_void) -> !;
    }
    preloaded("a_handler_may_end_its_thread", || {
        let (_, vcpu, run) = looping_guest();
        on_signal(libc::SIGUSR1, end as *const () as usize);
        // Not before the run has begun, where other frames are on the stack.
        // SAFETY: within the first page.
        unsafe { run.add(8).cast::<u32>().write_volatile(0xffff) };
        let thread = run_in_thread(vcpu);
        while exit_reason(run) == 0xffff {
            std::thread::yield_now();
        }
        signal_until(thread, libc::SIGUSR1, || HANDLED.load(Ordering::SeqCst) > 0);
        assert_eq!(join(thread), 7);
        // The vCPU is nobody's now, and can be run again.
        on_signal(libc::SIGUSR1, count as *const () as usize);
        let handled = HANDLED.load(Ordering::SeqCst);
        let thread = run_in_thread(vcpu);
        signal_until(thread, libc::SIGUSR1, || {
            HANDLED.load(Ordering::SeqCst) > handled && exit_reason(run) == EXIT_INTR
        });
        assert_eq!(join(thread), -libc::EINTR as isize);
    });
}

#[test]
fn a_child_has_the_descriptors_but_not_the_vm() {
    preloaded("a_child_has_the_descriptors_but_not_the_vm", || {
        let (vm, vcpu, _) = looping_guest();
        // SAFETY: the child only makes calls that are safe after fork, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let refused = [ioctl(vm, CHECK_EXTENSION, USER_MEMORY), ioctl(vcpu, RUN, 0)];
            let own = ioctl(open_kvm(), CREATE_VM, 0).and_then(|own| ioctl(own, CHECK_EXTENSION, USER_MEMORY));
            let right = refused == [Err(libc::EIO); 2] && own == Ok(1);
            // SAFETY: ends the child.
            unsafe { libc::_exit(if right { 0 } else { 1 }) };
        }
        let mut status = -1;
        // SAFETY: waits for the child.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
        assert_eq!(ioctl(vm, CHECK_EXTENSION, USER_MEMORY), Ok(1));
    });
}

#[test]
fn descriptors_are_duplicated_closed_and_reused_like_others() {
    preloaded("descriptors_are_duplicated_closed_and_reused_like_others", || {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        let kvm = open_kvm();
        // SAFETY: descriptors of the test's.
        unsafe {
            let copy = libc::dup(kvm);
            close(kvm);
            let vm = ioctl(copy, CREATE_VM, 0).unwrap();
            assert_eq!(libc::dup2(vm, copy), copy);
            assert_eq!(ioctl(copy, CHECK_EXTENSION, USER_MEMORY), Ok(1));
            assert_eq!(ioctl(copy, 0xae00, 0), Err(libc::ENOTTY), "it is the VM now");
            close(vm);
            assert_eq!(ioctl(copy, CHECK_EXTENSION, USER_MEMORY), Ok(1));
            // Closed and reused where the library does not see it.
            assert_eq!(libc::syscall(libc::SYS_close, copy), 0);
            let other = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY);
            assert_eq!(other, kvm.min(copy).min(other));
            assert_eq!(
                ioctl(copy, CHECK_EXTENSION, USER_MEMORY)
                    .err()
                    .map(|errno| errno == libc::EBADF || errno == libc::ENOTTY),
                Some(true)
            );
            close(other);
        }
        assert_eq!(open(), before);
    });
}

#[test]
fn bad_pointers_are_efault() {
    preloaded("bad_pointers_are_efault", || {
        let (vm, vcpu, _) = looping_guest();
        for address in [8, 1 << 47, u64::MAX - 8] {
            assert_eq!(ioctl(vm, SET_REGION, address), Err(libc::EFAULT));
            assert_eq!(ioctl(vcpu, 0x8090_ae81, address), Err(libc::EFAULT));
            assert_eq!(ioctl(vcpu, 0x4138_ae84, address), Err(libc::EFAULT));
        }
        assert_eq!(ioctl(vcpu, RUN, 1), Err(libc::EINVAL));
        assert_eq!(ioctl(9999, RUN, 0), Err(libc::EBADF));
    });
}

#[test]
fn module_parameters_are_those_of_the_machine() {
    preloaded("module_parameters_are_those_of_the_machine", || {
        let names = |path: &str| -> Vec<String> {
            std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let kvm: Vec<String> = names("/sys/module").into_iter().filter(|name| name.starts_with("kvm")).collect();
        assert_eq!(kvm, ["kvm", "kvm_amd"]);
        assert!(names("/sys/module/kvm/parameters").contains(&"mmio_caching".to_owned()));
        assert_eq!(std::fs::read_to_string("/sys/module/kvm/parameters/mmio_caching").unwrap(), "Y\n");
        assert!(std::fs::read_to_string("/sys/module/kvm_pvm/parameters/x").is_err());
        assert!(std::path::Path::new("/dev/kvm").exists());
    });
}
