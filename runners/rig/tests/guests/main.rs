//! What nobody here has written judges the sim's memory encryption: what real kernels say of its hosts, an unmodified
//! Linux as SEV-ES guest, SEV-SNP guest and TD, and the client crates `sev` and `tdx`. Without a kernel in the cache (`privet rig build`) these tests are
//! ignored.
//!
//! This program is all of it: the tests, the machine, the host's init, and the programs that run on that host.

mod hosts;
mod linux;
mod sev_crate;
mod tdx_crate;

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use privet_harness::vm_type::VmType;
use privet_kernel::Kernel;
use privet_rig::{
    Attached, GuestProgram, MachineKind, ModuleParam, Patience, Plan, Profile, ProgramEnd, ProgramNews, SimOptions,
    run_program,
};

/// Where the host has this program, and what that is there by its first argument.
const THIS_PROGRAM: &str = "/privet";
const LINUX: &str = "linux";
const SEV_CRATE: &str = "sev-crate";
const TDX_CRATE: &str = "tdx-crate";
const NOTHING: &str = "nothing";

fn main() -> ExitCode {
    if privet_rig::is_init() {
        privet_rig::init(|| Ok(()), |(), _, _| ());
    }
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let told = |result: Result<(), String>| match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    };
    match arguments.iter().map(|argument| argument.to_str()).collect::<Vec<_>>()[..] {
        [Some("sim-machine"), Some(job)] => told(privet_rig::sim_machine(job)),
        [Some(LINUX), Some(vm_type), Some(kernel)] => {
            let vm_type = vm_type.parse().expect("the tests know the types of VMs");
            told(linux::run(vm_type, Path::new(kernel)).map_err(|stop| stop.to_string()))
        }
        [Some(SEV_CRATE), Some(what)] => told(sev_crate::run(what).map_err(|error| error.to_string())),
        [Some(TDX_CRATE)] => told(tdx_crate::run().map_err(|error| error.to_string())),
        [Some(NOTHING)] => ExitCode::SUCCESS,
        _ => tests(),
    }
}

fn tests() -> ExitCode {
    let kernel = Kernel::cached();
    if let Err(error) = &kernel {
        eprintln!("no kernel to boot, so all of these tests are ignored: {error}");
    }
    let test = |name: &str, body: fn(Kernel)| {
        let kernel = kernel.as_ref().ok().cloned();
        let missing = kernel.is_none();
        let body = move || {
            body(kernel.expect("ignored without one"));
            Ok::<(), Failed>(())
        };
        Trial::test(name, body).with_ignored_flag(missing)
    };
    let tests = vec![
        test("a_genoa_launches_all_types", hosts::genoa),
        test("a_turin_has_its_rmp_in_segments", hosts::turin),
        test("kvm_amd_without_sev_launches_none", hosts::sev_parameter_off),
        test("without_cached_mmio_there_is_no_sev_es", hosts::mmio_caching_off),
        test("a_firmware_without_snp_is_told", hosts::firmware_without_snp),
        test("a_bios_that_reserves_no_rmp_is_told", hosts::no_rmp),
        test("a_processor_without_snp_launches_the_others", hosts::no_snp),
        test("a_granite_initializes_its_tdx_module", hosts::tdx),
        test("a_bios_that_sets_up_no_tdx_is_told", hosts::no_tdx),
        test("without_apicv_there_are_no_tds", hosts::tdx_without_apicv),
        test("without_cached_mmio_there_are_no_tds", hosts::tdx_without_cached_mmio),
        test("linux_runs_as_an_snp_guest_up_to_its_init", |kernel| {
            linux_guest(kernel, VmType::Snp, "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP", "2 CPUs")
        }),
        test("linux_runs_as_an_sev_es_guest_up_to_its_init", |kernel| {
            linux_guest(kernel, VmType::SevEs, "Memory Encryption Features active: AMD SEV SEV-ES", "1 CPU")
        }),
        test("linux_runs_as_a_td_up_to_its_init", |kernel| {
            linux_guest(kernel, VmType::Tdx, "Memory Encryption Features active: Intel TDX", "2 CPUs")
        }),
        test("the_crate_sev_asks_the_platform", |kernel| sev_crate(kernel, "platform", "identifier")),
        test("the_crate_sev_launches_an_snp_guest", |kernel| sev_crate(kernel, "snp", sev_crate::HALTED)),
        test("the_crate_tdx_launches_a_td", tdx_crate),
        #[cfg(feature = "openssl")]
        test("the_crate_sev_owns_and_launches_an_sev_guest", |kernel| sev_crate(kernel, "sev", sev_crate::HALTED)),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// A kernel that is booted as a host, which runs this program.
struct OnHost {
    kernel: Kernel,
    sim: SimOptions,
    module_params: Vec<ModuleParam>,
    /// Of this program.
    arguments: Vec<OsString>,
    /// What the program reads.
    files: Vec<PathBuf>,
}

/// What became of it.
struct Seen {
    /// The host's kernel log.
    log: String,
    printed: String,
    ended: ProgramEnd,
}

impl OnHost {
    fn new(kernel: Kernel, arguments: Vec<OsString>) -> OnHost {
        OnHost { kernel, sim: SimOptions::default(), module_params: Vec::new(), arguments, files: Vec::new() }
    }

    fn run(self) -> Seen {
        let plan = Plan {
            kernel: self.kernel,
            machine: MachineKind::Sim,
            worker: std::env::current_exe().expect("every process has one"),
            programs: Vec::new(),
            files: self.files,
            cases: Vec::new(),
            machines: 1,
            module_params: self.module_params,
            patience: Patience { pause: Duration::from_secs(600), ..Patience::default() },
            sim: self.sim,
            without_rule: None,
            tdx_faults: Vec::new(),
            keeps_snapshot: false,
            records: false,
            artifacts: None,
        };
        let program = GuestProgram { path: THIS_PROGRAM.into(), arguments: self.arguments, tells_symbols: false };
        // Nobody interrupts it: nobody writes into this pipe.
        let (interrupt, _writer) = std::io::pipe().expect("a pipe");
        let (mut printed, mut log) = (Vec::new(), Vec::new());
        let attached = Attached { log: true, ..Attached::default() };
        let ended = run_program(&plan, program, attached, interrupt.as_fd(), &mut |news| match news {
            ProgramNews::Printed(_, bytes) => printed.extend(bytes),
            ProgramNews::Logged(bytes) => log.extend(bytes),
        });
        let [log, printed] = [log, printed].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Seen { log, printed, ended: ended.expect("the machine runs to its end") }
    }
}

impl Seen {
    /// Without an error of the program, or of anything beside it.
    #[track_caller]
    fn assert_clean(&self) {
        let Seen { log, printed, ended } = self;
        assert_eq!((ended.status, &ended.not_simulated, &ended.trouble), (0, &None, &None), "{log}\n{printed}");
    }
}

fn linux_guest(kernel: Kernel, vm_type: VmType, features: &str, processors: &str) {
    let image = kernel.image.clone();
    let arguments = vec![LINUX.into(), vm_type.to_string().into(), image.clone().into()];
    let profile = if vm_type == VmType::Tdx { Profile::Granite } else { Profile::default() };
    let sim = SimOptions { profile, ..SimOptions::default() };
    let host = OnHost { files: vec![image], sim, ..OnHost::new(kernel, arguments) }.run();
    let console = &host.printed;
    // The lines of a serial console end with a carriage return, too.
    let words = [&format!("{features}\r\n"), &format!("smp: Brought up 1 node, {processors}\r\n"), linux::HELLO];
    for word in words {
        assert!(console.contains(word), "{word} is missing: {console}");
    }
    for trouble in ["WARNING", "BUG", "APIC ID mismatch"] {
        assert!(!console.contains(trouble), "{trouble}: {console}");
    }
    host.assert_clean();
}

fn sev_crate(kernel: Kernel, what: &str, word: &str) {
    let host = OnHost::new(kernel, vec![SEV_CRATE.into(), what.into()]).run();
    host.assert_clean();
    assert!(host.printed.contains(word), "{word} is missing: {}", host.printed);
}

fn tdx_crate(kernel: Kernel) {
    let sim = SimOptions { profile: Profile::Granite, ..SimOptions::default() };
    let host = OnHost { sim, ..OnHost::new(kernel, vec![TDX_CRATE.into()]) }.run();
    host.assert_clean();
    assert!(host.printed.contains(tdx_crate::LEFT), "it has not left: {}", host.printed);
}
