//! What a TD that runs meets: entry and exit of its vCPUs, its memory, and TDG.* (TDX module ABI, "TDCALL").

use super::Tdx;
use super::field::Field;
use super::leaf::GuestLeaf;
use super::pamt::PAGE;
use super::report::{REPORT, report};
use super::sept::SeptEntry;
use super::status::{Code, Operand, Status};
use super::surroundings::{Registers, Surroundings};
use super::td::PENDING_VE_DISABLE;
use super::vcpu::VeInfo;
use crate::encryption::Key;
use crate::{KeyedMemory, Rule};

/// What TDH.VP.ENTER does with what the processor remembers of the TD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entered {
    /// Translations of the vCPU go: it was elsewhere, or the host has blocked something since.
    pub flush: bool,
}

/// A guest-physical address of a TD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestPage {
    /// Private: this page, with this key.
    Private {
        /// Where it is.
        page: u64,
        /// The TD's.
        key: Key,
    },
    /// Shared: the host's tables say where.
    Shared,
    /// An EPT violation, which leaves the TD. `pending`: the host has given the page, the TD has not accepted it.
    Violation {
        /// Not accepted.
        pending: bool,
    },
    /// #VE, which is the TD's: it has not accepted the page.
    Exception,
}

/// How a TDCALL ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestCall {
    /// With this in RAX, behind the instruction.
    Done(Status),
    /// It leaves the TD: TDG.VP.VMCALL with this mask of registers.
    Vmcall(u64),
    /// It leaves the TD with an EPT violation at this GPA, and will be executed again.
    Violation {
        /// Where.
        gpa: u64,
        /// Because of TDG.MEM.PAGE.ACCEPT.
        accept: bool,
    },
}

/// Registers that TDG.VP.VMCALL may show: RDX, RBX, RSI, RDI, R8 to R15, and XMM0 to XMM15.
const VMCALL_MASK: u64 = 0xFFFF_FFCC;

/// Why a leaf of TDCALL is not done.
enum Stop {
    Refused(Status),
    Left(GuestCall),
}

impl From<Status> for Stop {
    fn from(status: Status) -> Stop {
        Stop::Refused(status)
    }
}

impl From<Code> for Stop {
    fn from(code: Code) -> Stop {
        Stop::Refused(code.into())
    }
}

impl Tdx {
    /// TDH.VP.ENTER, up to where the vCPU runs.
    ///
    /// # Errors
    /// The status with which it is refused. Nothing has changed then.
    pub fn enter(&mut self, processor: usize, tdvpr: u64) -> Result<Entered, Status> {
        self.require_ready()?;
        if let Some(status) = self.injector.called(super::HostLeaf::VpEnter) {
            return Err(status);
        }
        let [dies, forgets, is_alone] =
            [Rule::DeadVcpu, Rule::FlushAtEntry, Rule::OneProcessor].map(|rule| self.holds(rule));
        let (vcpu, control) = self.live_vcpu(tdvpr)?;
        control.require_runnable()?;
        if vcpu.disabled && dies {
            return Err(Code::VcpuStateIncorrect.into());
        }
        if vcpu.running {
            return Err(Code::OperandBusy.on(Operand::Tdvpr));
        }
        match vcpu.associate(processor, control) {
            Err(status) if is_alone => return Err(status),
            _ => {}
        }
        let epoch = control.epochs.enter();
        let here = Some((processor, epoch));
        let flush = vcpu.last_run != here && forgets;
        (vcpu.last_run, vcpu.running) = (here, true);
        Ok(Entered { flush })
    }

    /// The vCPU is left.
    pub fn leave(&mut self, tdvpr: u64) {
        let Ok((vcpu, control)) = self.running_vcpu(tdvpr) else { return };
        if let (true, Some((_, epoch))) = (vcpu.running, vcpu.last_run) {
            control.epochs.leave(epoch);
        }
        vcpu.running = false;
    }

    /// The vCPU has shut down: it never runs again.
    pub fn disable(&mut self, tdvpr: u64) {
        if let Ok((vcpu, _)) = self.running_vcpu(tdvpr) {
            vcpu.disabled = true;
        }
    }

    /// The TD has met memory that is not as it has left it: none of its vCPUs ever runs again.
    pub fn make_fatal(&mut self, tdvpr: u64) {
        let dies = self.holds(Rule::DeadTd);
        let td = self.vcpus.get(&tdvpr).and_then(|vcpu| self.tds.get_mut(&vcpu.td));
        if let Some(td) = td {
            td.fatal = dies;
        }
    }

    /// A #VE is going to be raised. Whether it can be: the one before has been told.
    pub fn raise_ve(&mut self, tdvpr: u64, info: VeInfo) -> bool {
        let only_one = self.holds(Rule::OneVe);
        match self.running_vcpu(tdvpr) {
            Ok((vcpu, _)) if vcpu.ve.is_none() || !only_one => {
                vcpu.ve = Some(info);
                true
            }
            _ => false,
        }
    }

    /// What an access of the TD to a guest-physical address finds.
    pub fn guest_page(&mut self, tdvpr: u64, gpa: u64) -> GuestPage {
        let violation = GuestPage::Violation { pending: false };
        let Some(td) = self.vcpus.get(&tdvpr).and_then(|vcpu| self.tds.get(&vcpu.td)) else { return violation };
        let Some(control) = &td.control else { return violation };
        if !control.sept.is_private(gpa) {
            return GuestPage::Shared;
        }
        match control.sept.guest_walk(gpa).entry {
            Some(SeptEntry::Mapped(page)) => GuestPage::Private { page, key: td.key },
            Some(SeptEntry::Blocked(page)) if !self.holds(Rule::BlockedAccess) => {
                GuestPage::Private { page, key: td.key }
            }
            Some(SeptEntry::Pending(_))
                if control.td_ctls & PENDING_VE_DISABLE == 0 || !self.holds(Rule::PendingExit) =>
            {
                GuestPage::Exception
            }
            Some(SeptEntry::Pending(_)) => GuestPage::Violation { pending: true },
            _ => violation,
        }
    }

    /// What CPUID gives in the TD: EAX, EBX, ECX, EDX; none where it raises #VE.
    pub fn guest_cpuid(&mut self, tdvpr: u64, leaf: u32, subleaf: u32) -> Option<[u32; 4]> {
        if !self.holds(Rule::TdCpuid) {
            return None;
        }
        let (_, control) = self.running_vcpu(tdvpr).ok()?;
        control.cpuid.answer(leaf, subleaf).map(|bits| bits.0)
    }

    /// The TSC of the TD when the host's is `now`.
    pub fn guest_tsc(&mut self, tdvpr: u64, now: u64) -> u64 {
        self.running_vcpu(tdvpr).map_or(now, |(_, control)| control.tsc(now))
    }

    /// What the host has set about the vCPU.
    pub fn host_controls(&mut self, tdvpr: u64) -> super::HostControls {
        self.running_vcpu(tdvpr).map(|(vcpu, _)| vcpu.host).unwrap_or_default()
    }

    /// Executes TDCALL with this RAX in a vCPU that runs; results are in `registers`.
    pub fn tdcall(
        &mut self,
        around: &mut Surroundings<'_>,
        tdvpr: u64,
        rax: u64,
        registers: &mut Registers,
    ) -> GuestCall {
        let known = GuestLeaf::numbered(rax as u16).filter(|_| rax >> 16 == 0);
        let Some(leaf) = known else { return GuestCall::Done(Code::OperandInvalid.on(Operand::Rax)) };
        let done = match leaf {
            GuestLeaf::VpVmcall => vmcall(registers),
            GuestLeaf::VpInfo => self.vp_info(tdvpr, registers),
            GuestLeaf::MrRtmrExtend => self.rtmr_extend(around.memory, tdvpr, registers),
            GuestLeaf::VpVeinfoGet => self.veinfo_get(tdvpr, registers),
            GuestLeaf::MrReport => self.mr_report(around.memory, tdvpr, registers),
            GuestLeaf::MemPageAccept => self.page_accept(around.memory, tdvpr, registers),
            GuestLeaf::VmRd => self.vm_rd(tdvpr, registers),
            GuestLeaf::VmWr => self.vm_wr(tdvpr, registers),
        };
        match done {
            Ok(()) => GuestCall::Done(Status::SUCCESS),
            Err(Stop::Refused(status)) => GuestCall::Done(status),
            Err(Stop::Left(call)) => call,
        }
    }

    /// Private memory of the TD that a leaf names, in one page.
    fn operand(&mut self, tdvpr: u64, gpa: u64, alignment: u64, operand: Operand) -> Result<(u64, Key), Stop> {
        if !gpa.is_multiple_of(alignment) {
            return Err(Code::OperandInvalid.on(operand).into());
        }
        match self.guest_page(tdvpr, gpa) {
            GuestPage::Private { page, key } => Ok((page + gpa % PAGE, key)),
            GuestPage::Shared => Err(Code::OperandInvalid.on(operand).into()),
            GuestPage::Violation { .. } | GuestPage::Exception => {
                Err(Stop::Left(GuestCall::Violation { gpa: gpa & !(PAGE - 1), accept: false }))
            }
        }
    }

    /// TDG.VP.INFO.
    fn vp_info(&mut self, tdvpr: u64, registers: &mut Registers) -> Result<(), Stop> {
        let (vcpu, control) = self.running_vcpu(tdvpr)?;
        registers.rcx = control.gpaw().into();
        registers.rdx = control.attributes;
        registers.r8 = control.vcpus.len() as u64 | u64::from(control.max_vcpus) << 32;
        registers.r9 = vcpu.index.into();
        // TDG.SYS.RD is not offered.
        registers.r10 = 0;
        registers.r11 = 0;
        Ok(())
    }

    /// TDG.MR.RTMR.EXTEND.
    fn rtmr_extend(&mut self, memory: &mut dyn KeyedMemory, tdvpr: u64, registers: &mut Registers) -> Result<(), Stop> {
        let (at, key) = self.operand(tdvpr, registers.rcx, 64, Operand::Rcx)?;
        let mut data = [0; 48];
        memory.read_as(key, at, &mut data);
        let index = usize::try_from(registers.rdx).unwrap_or(usize::MAX);
        let (_, control) = self.running_vcpu(tdvpr)?;
        control.rtmrs.extend(index, &data).ok_or(Code::OperandInvalid.on(Operand::Rdx).into())
    }

    /// TDG.VP.VEINFO.GET.
    fn veinfo_get(&mut self, tdvpr: u64, registers: &mut Registers) -> Result<(), Stop> {
        let info = self.running_vcpu(tdvpr)?.0.ve.take().ok_or(Code::NoValidVeInfo)?;
        registers.rcx = info.reason.into();
        registers.rdx = info.qualification;
        registers.r8 = info.gla;
        registers.r9 = info.gpa;
        registers.r10 = u64::from(info.length) | u64::from(info.information) << 32;
        Ok(())
    }

    /// TDG.MR.REPORT.
    fn mr_report(&mut self, memory: &mut dyn KeyedMemory, tdvpr: u64, registers: &Registers) -> Result<(), Stop> {
        let (at, key) = self.operand(tdvpr, registers.rcx, REPORT as u64, Operand::Rcx)?;
        let (data_at, _) = self.operand(tdvpr, registers.rdx, 64, Operand::Rdx)?;
        if registers.r8 != 0 {
            return Err(Code::OperandInvalid.on(Operand::R8).into());
        }
        let mut data = [0; 64];
        memory.read_as(key, data_at, &mut data);
        let (seed, as_they_are) = (self.chip.seed, self.holds(Rule::ReportedRegisters));
        let (_, control) = self.running_vcpu(tdvpr)?;
        let report = match as_they_are {
            true => report(control, data, &seed),
            false => vec![0; REPORT],
        };
        memory.write_as(key, at, &report);
        Ok(())
    }

    /// TDG.MEM.PAGE.ACCEPT. Levels 0 and 1; a page of 2 MiB is never mapped as one, so of level 1 all that is mapped is of
    /// another size.
    fn page_accept(&mut self, memory: &mut dyn KeyedMemory, tdvpr: u64, registers: &Registers) -> Result<(), Stop> {
        let [once, sized, clears] =
            [Rule::AcceptOnce, Rule::AcceptSize, Rule::AcceptClears].map(|rule| self.holds(rule));
        let vcpu = self.vcpus.get(&tdvpr).ok_or(Code::VcpuStateIncorrect)?;
        let td = self.tds.get_mut(&vcpu.td).ok_or(Code::VcpuStateIncorrect)?;
        let key = td.key;
        let control = td.control()?;
        let place = control.sept.place(registers.rcx, 0..=1)?;
        let found = control.sept.walk(place);
        if found.place != place {
            return Err(Stop::Left(GuestCall::Violation { gpa: place.gpa, accept: true }));
        }
        match found.entry {
            Some(SeptEntry::Pending(page)) => {
                // What was there nobody knows.
                let content = if clears { 0 } else { 0xA5 };
                memory.write_as(key, page, &[content; PAGE as usize]);
                control.sept.set(place, Some(SeptEntry::Mapped(page)));
                Ok(())
            }
            Some(SeptEntry::Mapped(_)) if !once => Ok(()),
            Some(SeptEntry::Mapped(_)) => Err(Code::PageAlreadyAccepted.with(place.level.into()).into()),
            Some(SeptEntry::Table(_)) if !sized => Ok(()),
            Some(SeptEntry::Table(_)) => Err(Code::PageSizeMismatch.with(place.level.into()).into()),
            None | Some(SeptEntry::Blocked(_) | SeptEntry::PendingBlocked(_) | SeptEntry::TableBlocked(_)) => {
                Err(Stop::Left(GuestCall::Violation { gpa: place.gpa, accept: true }))
            }
        }
    }

    /// TDG.VM.RD.
    fn vm_rd(&mut self, tdvpr: u64, registers: &mut Registers) -> Result<(), Stop> {
        let field = Field::of(registers.rdx);
        registers.r8 = 0;
        let (_, control) = self.running_vcpu(tdvpr)?;
        registers.r8 = match (field.class, field.code) {
            (17, 0x10) => control.notify_enables,
            (17, 0x16) => control.config_flags,
            (17, 0x17) => control.td_ctls,
            // Each vCPU has an x2APIC id of its own: TDH.VP.INIT made sure of that.
            (17, 0x19) => 1,
            _ => return Err(Code::MetadataFieldNotReadable.on(Operand::Rdx).into()),
        };
        Ok(())
    }

    /// TDG.VM.WR. REDUCE_VE is not offered, which a Linux guest can live with.
    fn vm_wr(&mut self, tdvpr: u64, registers: &mut Registers) -> Result<(), Stop> {
        let (field, value, mask) = (Field::of(registers.rdx), registers.r8, registers.r9);
        registers.r8 = 0;
        let (_, control) = self.running_vcpu(tdvpr)?;
        let (register, writable) = match (field.class, field.code) {
            (17, 0x10) => (&mut control.notify_enables, u64::MAX),
            (17, 0x17) => {
                let writable = control.writable_controls();
                (&mut control.td_ctls, writable)
            }
            _ => return Err(Code::MetadataFieldNotWritable.on(Operand::Rdx).into()),
        };
        if mask & !writable != 0 {
            return Err(Code::MetadataFieldValueNotValid.on(Operand::R8).into());
        }
        registers.r8 = *register;
        *register = *register & !mask | value & mask;
        Ok(())
    }
}

/// TDG.VP.VMCALL: RCX says which registers the host sees.
fn vmcall(registers: &Registers) -> Result<(), Stop> {
    match registers.rcx & !VMCALL_MASK {
        0 => Err(Stop::Left(GuestCall::Vmcall(registers.rcx))),
        _ => Err(Code::OperandInvalid.on(Operand::Rcx).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tdx::HostLeaf;
    use crate::tdx::test_machine::{GPA, TDR, TestMachine, page, td_params, tdvpr};

    const SHARED: u64 = 1 << 47;
    const AUGMENTED: u64 = GPA + 0x1000;

    /// A TD of two pages, the second of which it has not accepted.
    fn machine() -> TestMachine {
        let mut machine = TestMachine::runnable();
        assert_eq!(machine.call(HostLeaf::MemPageAug, [AUGMENTED, TDR, page(101), 0]), 0);
        machine
    }

    fn refused(code: Status) -> GuestCall {
        GuestCall::Done(code)
    }

    const DONE: GuestCall = GuestCall::Done(Status::SUCCESS);

    #[test]
    fn a_vcpu_runs_on_one_processor_at_a_time() {
        let mut machine = machine();
        assert_eq!(machine.tdx.enter(0, tdvpr(0)), Ok(Entered { flush: true }));
        assert_eq!(machine.tdx.enter(0, tdvpr(0)), Err(Code::OperandBusy.on(Operand::Tdvpr)));
        machine.tdx.leave(tdvpr(0));
        assert_eq!(machine.tdx.enter(1, tdvpr(0)), Err(Code::VcpuAssociated.on(Operand::Tdvpr)));
        assert_eq!(machine.tdx.enter(0, tdvpr(0)), Ok(Entered { flush: false }));
    }

    #[test]
    fn what_was_blocked_goes_with_the_next_entry() {
        let mut machine = machine();
        machine.tdx.enter(0, tdvpr(0)).unwrap();
        machine.call(HostLeaf::MemRangeBlock, [GPA, TDR, 0, 0]);
        machine.call(HostLeaf::MemTrack, [TDR, 0, 0, 0]);
        let remove = [GPA, TDR, 0, 0];
        machine.refuses(HostLeaf::MemPageRemove, remove, Code::TlbTrackingNotDone.on(Operand::Rcx));
        machine.refuses(HostLeaf::MemTrack, [TDR, 0, 0, 0], Code::PreviousTlbEpochBusy.on(Operand::TdEpoch));
        machine.tdx.leave(tdvpr(0));
        assert_eq!(machine.call(HostLeaf::MemPageRemove, remove), 0);
        assert_eq!(machine.tdx.enter(0, tdvpr(0)), Ok(Entered { flush: true }));
    }

    #[test]
    fn some_vcpus_never_run() {
        let mut building = TestMachine::with_vcpu();
        assert_eq!(building.tdx.enter(0, tdvpr(0)), Err(Code::OpStateIncorrect.on(Operand::OpState)));
        let mut shut_down = machine();
        shut_down.tdx.disable(tdvpr(0));
        assert_eq!(shut_down.tdx.enter(0, tdvpr(0)), Err(Code::VcpuStateIncorrect.into()));
        let mut spoiled = machine();
        spoiled.tdx.make_fatal(tdvpr(0));
        assert_eq!(spoiled.tdx.enter(0, tdvpr(0)), Err(Code::TdFatal.on(Operand::Tdr)));
        assert_eq!(spoiled.tdx.enter(0, page(3)), Err(Code::PageMetadataIncorrect.on(Operand::Rcx)));
    }

    #[test]
    fn memory_is_private_shared_or_a_violation() {
        let mut machine = machine();
        let key = machine.tdx.tds[&TDR].key;
        assert_eq!(machine.tdx.guest_page(tdvpr(0), GPA + 8), GuestPage::Private { page: page(100), key });
        assert_eq!(machine.tdx.guest_page(tdvpr(0), GPA | SHARED), GuestPage::Shared);
        assert_eq!(machine.tdx.guest_page(tdvpr(0), 0x8000), GuestPage::Violation { pending: false });
        assert_eq!(machine.tdx.guest_page(tdvpr(0), AUGMENTED), GuestPage::Violation { pending: true });
        machine.call(HostLeaf::MemRangeBlock, [GPA, TDR, 0, 0]);
        assert_eq!(machine.tdx.guest_page(tdvpr(0), GPA), GuestPage::Violation { pending: false });
    }

    #[test]
    fn without_sept_ve_disable_a_pending_page_is_the_tds_matter() {
        let mut params = td_params();
        params[..8].fill(0);
        let mut machine = TestMachine::runnable_with(&params);
        assert_eq!(machine.call(HostLeaf::MemPageAug, [AUGMENTED, TDR, page(101), 0]), 0);
        assert_eq!(machine.tdx.guest_page(tdvpr(0), AUGMENTED), GuestPage::Exception);
    }

    #[test]
    fn a_page_is_accepted_once_and_then_reads_zero() {
        let mut machine = machine();
        machine.memory_write(page(101), &[7; 4096]);
        assert_eq!(machine.tdcall(6, [AUGMENTED, 0, 0, 0]), DONE);
        let mut seen = [1; 64];
        let key = machine.tdx.tds[&TDR].key;
        machine.memory.read_as(key, page(101), &mut seen);
        assert_eq!(seen, [0; 64]);
        assert_eq!(machine.tdcall(6, [AUGMENTED, 0, 0, 0]), refused(Code::PageAlreadyAccepted.with(0)));
        assert_eq!(machine.tdcall(6, [GPA, 0, 0, 0]), refused(Code::PageAlreadyAccepted.with(0)), "it was added");
    }

    #[test]
    fn accepting_what_is_not_there_leaves_the_td() {
        let mut machine = machine();
        let left = |gpa| GuestCall::Violation { gpa, accept: true };
        assert_eq!(machine.tdcall(6, [0x9000, 0, 0, 0]), left(0x9000));
        assert_eq!(machine.tdcall(6, [0x20_0001, 0, 0, 0]), left(0x20_0000));
        assert_eq!(machine.tdcall(6, [0x4000_0000, 0, 0, 0]), left(0x4000_0000));
        assert_eq!(machine.tdcall(6, [1, 0, 0, 0]), refused(Code::PageSizeMismatch.with(1)));
        for rcx in [2, 0x9004, SHARED | 0x1000, 0x1001] {
            assert_eq!(machine.tdcall(6, [rcx, 0, 0, 0]), refused(Code::OperandInvalid.on(Operand::Rcx)), "{rcx:#x}");
        }
    }

    #[test]
    fn a_td_knows_itself() {
        let mut machine = machine();
        assert_eq!(machine.tdcall(1, [0; 4]), DONE);
        let Registers { rcx, rdx, r8, r9, r10, r11 } = machine.registers;
        assert_eq!((rcx, rdx, r8, r9, r10, r11), (48, 1 << 28, 1 | 2 << 32, 0, 0, 0));
    }

    #[test]
    fn one_ve_is_told_before_the_next() {
        let mut machine = machine();
        let info = VeInfo { reason: 48, qualification: 2, gla: 3, gpa: 4, length: 5, information: 6 };
        assert!(machine.tdx.raise_ve(tdvpr(0), info));
        assert!(!machine.tdx.raise_ve(tdvpr(0), info));
        assert_eq!(machine.tdcall(3, [0; 4]), DONE);
        let Registers { rcx, rdx, r8, r9, r10, .. } = machine.registers;
        assert_eq!((rcx, rdx, r8, r9, r10), (48, 2, 3, 4, 5 | 6 << 32));
        assert_eq!(machine.tdcall(3, [0; 4]), refused(Code::NoValidVeInfo.into()));
    }

    #[test]
    fn a_report_is_written_into_private_memory() {
        let mut machine = machine();
        assert_eq!(machine.tdcall(4, [GPA + 0x400, GPA + 0x40, 0, 0]), DONE);
        let mut seen = [0; 1024];
        let key = machine.tdx.tds[&TDR].key;
        machine.memory.read_as(key, page(100) + 0x400, &mut seen);
        assert_eq!(seen[0], 0x81);
        assert_ne!(seen[528..576], [0; 48]);
        for (operands, operand) in [
            ([GPA + 0x200, GPA, 0, 0], Operand::Rcx),
            ([GPA | SHARED, GPA, 0, 0], Operand::Rcx),
            ([GPA, GPA + 8, 0, 0], Operand::Rdx),
            ([GPA, GPA, 1, 0], Operand::R8),
        ] {
            assert_eq!(machine.tdcall(4, operands), refused(Code::OperandInvalid.on(operand)));
        }
        let left = GuestCall::Violation { gpa: 0x9000, accept: false };
        assert_eq!(machine.tdcall(4, [0x9400, GPA, 0, 0]), left);
    }

    #[test]
    fn rtmrs_are_extended_by_private_memory() {
        let mut machine = machine();
        assert_eq!(machine.tdcall(2, [GPA, 3, 0, 0]), DONE);
        let control = machine.tdx.tds[&TDR].control.as_ref().unwrap();
        assert_ne!(control.rtmrs.values()[3], [0; 48]);
        assert_eq!(machine.tdcall(2, [GPA, 4, 0, 0]), refused(Code::OperandInvalid.on(Operand::Rdx)));
        assert_eq!(machine.tdcall(2, [GPA + 8, 0, 0, 0]), refused(Code::OperandInvalid.on(Operand::Rcx)));
    }

    /// arch/x86/coco/tdx/tdx.c: tdx_setup().
    #[test]
    fn a_linux_guest_finds_the_fields_that_it_reads_and_writes() {
        let mut machine = machine();
        assert_eq!(machine.tdcall(8, [0, 0x9100_0000_0000_0010, 0, u64::MAX]), DONE);
        assert_eq!(machine.tdcall(7, [0, 0x1110_0003_0000_0016, 0, 0]), DONE);
        assert_eq!(machine.registers.r8, 1 << 2);
        let td_ctls = 0x1110_0003_0000_0017;
        let reduce_ve = refused(Code::MetadataFieldValueNotValid.on(Operand::R8));
        assert_eq!(machine.tdcall(8, [0, td_ctls, 1 << 3, 1 << 3]), reduce_ve);
        assert_eq!(machine.tdcall(8, [0, td_ctls, 0, 1]), reduce_ve, "only a flexible TD may choose");
        assert_eq!(machine.tdcall(8, [0, td_ctls, 2, 2]), DONE);
        assert_eq!(machine.tdcall(7, [0, td_ctls, 0, 0]), DONE);
        assert_eq!(machine.registers.r8, 3);
        assert_eq!(machine.tdcall(7, [0, 5, 0, 0]), refused(Code::MetadataFieldNotReadable.on(Operand::Rdx)));
        assert_eq!(machine.tdcall(8, [0, 5, 0, 0]), refused(Code::MetadataFieldNotWritable.on(Operand::Rdx)));
    }

    #[test]
    fn a_vmcall_shows_what_its_mask_says() {
        let mut machine = machine();
        assert_eq!(machine.tdcall(0, [0xFFCC, 0, 0, 0]), GuestCall::Vmcall(0xFFCC));
        for bit in [0, 1, 4, 5, 32] {
            let invalid = refused(Code::OperandInvalid.on(Operand::Rcx));
            assert_eq!(machine.tdcall(0, [1 << bit, 0, 0, 0]), invalid, "{bit}");
        }
        assert_eq!(machine.tdcall(5, [0; 4]), refused(Code::OperandInvalid.on(Operand::Rax)));
        assert_eq!(machine.tdcall(1 << 16, [0; 4]), refused(Code::OperandInvalid.on(Operand::Rax)));
    }
}
