//! All commands, each in any state of the VM and with any values: rows see here what KVM and the firmware refuse.
#![expect(unsafe_code, reason = "commands are told addresses of memory")]

use std::os::fd::RawFd;

use kvm_bindings::{
    kvm_enc_region, kvm_sev_attestation_report, kvm_sev_dbg, kvm_sev_guest_status, kvm_sev_init,
    kvm_sev_launch_measure, kvm_sev_launch_secret, kvm_sev_launch_start, kvm_sev_launch_update_data,
    kvm_sev_receive_start, kvm_sev_send_start, kvm_sev_snp_launch_finish, kvm_sev_snp_launch_start,
    kvm_sev_snp_launch_update,
};
use nix::errno::Errno;

use super::command::{Command, Refused, copy_for_kvm, issue, issue_at, issue_sealed, issue_without};
use super::device::Device;
use super::firmware::Firmware;
use super::memory::Memory;
use super::policy::{SevPolicy, SnpPolicy};
use crate::errno;
use crate::mapping::Access;
use crate::outcome::Outcome;
use crate::units::PAGE_SIZE;
use crate::vm::Vm;

/// The commands of one VM. Each returns what KVM and the firmware say of it.
#[derive(Clone, Copy, Debug)]
pub struct Commands<'a> {
    vm: &'a Vm,
    firmware: RawFd,
    /// Whether KVM can write its answers to arguments.
    answers: Access,
}

/// What `LAUNCH_START` and `RECEIVE_START` are told of the owner's session, as memory and its length in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Session<'a> {
    /// The owner's Diffie-Hellman certificate.
    pub dh_certificate: (Memory<'a>, u32),
    /// The session's wrapped keys and the policy's MAC.
    pub keys: (Memory<'a>, u32),
}

/// What `LAUNCH_SECRET` and `RECEIVE_UPDATE_DATA` move, each as memory and its length in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Secret<'a> {
    /// The packet's header.
    pub header: (Memory<'a>, u32),
    /// Where it goes.
    pub guest: (Memory<'a>, u32),
    /// The encrypted bytes.
    pub transport: (Memory<'a>, u32),
}

/// Whom `SEND_START` shall send a guest to, each as memory and its length in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Recipient<'a> {
    /// The platform's Diffie-Hellman certificate.
    pub certificate: (Memory<'a>, u32),
    /// The three certificates that vouch for that.
    pub chain: (Memory<'a>, u32),
    /// AMD's, which vouch for the chip.
    pub amd: (Memory<'a>, u32),
}

/// What `SNP_LAUNCH_UPDATE` is told; after a success what is left to be done.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// The first page, in pages.
    pub gfn: u64,
    /// Where the content is.
    pub source: Memory<'a>,
    /// How much of it, in bytes.
    pub len: u64,
    /// [`PageType::number`](super::PageType::number), or what is none.
    pub page_type: u8,
    /// 0.
    pub flags: u16,
}

/// What `SNP_LAUNCH_FINISH` is told.
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a> {
    /// The identity block of 96 bytes and its authentication of 4096, if there are any.
    pub id: Option<(Memory<'a>, Memory<'a>)>,
    /// Whether the author's key is in the authentication and counts.
    pub author_key: bool,
    /// The chip's own key is not to be used for reports.
    pub vcek_disabled: bool,
    /// What the host wants the guest's reports to say.
    pub host_data: [u8; 32],
    /// 0.
    pub flags: u16,
}

impl Finish<'_> {
    /// No identity block, nothing from the host.
    pub const PLAIN: Finish<'static> =
        Finish { id: None, author_key: false, vcek_disabled: false, host_data: [0; 32], flags: 0 };
}

impl<'a> Commands<'a> {
    /// The commands of `vm`, with the firmware behind `device`.
    pub fn new(vm: &'a Vm, device: &Device) -> Commands<'a> {
        Self::with_descriptor(vm, device.fd())
    }

    /// The same with any number for the descriptor of `/dev/sev`.
    pub fn with_descriptor(vm: &'a Vm, firmware: RawFd) -> Commands<'a> {
        Commands { vm, firmware, answers: Access::All }
    }

    /// The same with arguments that KVM can read and not write.
    pub fn without_answers(self) -> Commands<'a> {
        Commands { answers: Access::Reading, ..self }
    }

    /// The VM.
    pub fn vm(self) -> &'a Vm {
        self.vm
    }

    /// Any command with an argument at an address that cannot be accessed, or 0.
    ///
    /// # Errors
    /// What KVM and the firmware say.
    pub fn without_argument(self, command: Command, address: u16) -> Result<(), Refused> {
        issue_without(self.vm, self.firmware, command, address)
    }

    /// A command without an argument, the firmware's word about which KVM cannot write.
    ///
    /// # Errors
    /// `Stop::Error` if there is no memory for it. What KVM says is in the value.
    pub fn sealed(self, command: Command) -> Outcome<Result<(), Errno>> {
        issue_sealed(self.vm, self.firmware, command)
    }

    /// `GET_ATTESTATION_REPORT` of `len` bytes about this nonce, and the length that is told.
    pub fn attestation_report(self, nonce: [u8; 16], into: Memory<'_>, len: u32) -> (Result<(), Refused>, u32) {
        let mut report =
            kvm_sev_attestation_report { mnonce: nonce, uaddr: into.address(len.into()), len, ..Default::default() };
        // SAFETY: `address` has looked at the address.
        let result = unsafe { self.issue(Command::GET_ATTESTATION_REPORT, &mut report) };
        (result, report.len)
    }

    /// `INIT2`: makes an encrypted guest of the VM.
    ///
    /// # Errors
    /// As KVM says; the firmware is asked only where it was not initialized before.
    pub fn init2(self, init: kvm_sev_init) -> Result<(), Refused> {
        let mut argument = init;
        // SAFETY: the argument holds no address.
        unsafe { self.issue(Command::INIT2, &mut argument) }
    }

    /// The legacy `INIT`, for VMs of the default type.
    ///
    /// # Errors
    /// As [`init2`](Self::init2).
    pub fn init(self) -> Result<(), Refused> {
        self.without_argument(Command::INIT, 0)
    }

    /// The legacy `ES_INIT`, likewise.
    ///
    /// # Errors
    /// As [`init2`](Self::init2).
    pub fn es_init(self) -> Result<(), Refused> {
        self.without_argument(Command::ES_INIT, 0)
    }

    /// `LAUNCH_START`; returns the firmware's handle of the guest. `handle` 0 asks for a new guest, another one for
    /// the key of that guest.
    ///
    /// # Errors
    /// What KVM and the firmware say.
    pub fn launch_start(self, handle: u32, policy: SevPolicy, session: Option<Session<'_>>) -> Result<u32, Refused> {
        let mut start = kvm_sev_launch_start { handle, policy: policy.0, ..Default::default() };
        if let Some(Session { dh_certificate: (dh, dh_len), keys: (keys, keys_len) }) = session {
            (start.dh_uaddr, start.dh_len) = (dh.address(dh_len.into()), dh_len);
            (start.session_uaddr, start.session_len) = (keys.address(keys_len.into()), keys_len);
        }
        // SAFETY: `address` has looked at the addresses.
        unsafe { self.issue(Command::LAUNCH_START, &mut start) }?;
        Ok(start.handle)
    }

    /// `LAUNCH_UPDATE_DATA`: encrypts `len` bytes where they are.
    ///
    /// # Errors
    /// What KVM and the firmware say.
    pub fn launch_update_data(self, memory: Memory<'_>, len: u32) -> Result<(), Refused> {
        let mut update = kvm_sev_launch_update_data { uaddr: memory.address(len.into()), len, ..Default::default() };
        // SAFETY: `address` has looked at the address; the memory is a `Mapping`'s, whose content may change any time.
        unsafe { self.issue(Command::LAUNCH_UPDATE_DATA, &mut update) }
    }

    /// `LAUNCH_UPDATE_VMSA`: encrypts the state of every vCPU.
    ///
    /// # Errors
    /// What KVM and the firmware say.
    pub fn launch_update_vmsa(self) -> Result<(), Refused> {
        self.without_argument(Command::LAUNCH_UPDATE_VMSA, 0)
    }

    /// `LAUNCH_MEASURE` into `len` bytes; also returns the length that came back, which is there after a refusal, too.
    pub fn launch_measure(self, into: Memory<'_>, len: u32) -> (Result<(), Refused>, u32) {
        let mut measure = kvm_sev_launch_measure { uaddr: into.address(len.into()), len, ..Default::default() };
        // SAFETY: `address` has looked at the address.
        let result = unsafe { self.issue(Command::LAUNCH_MEASURE, &mut measure) };
        (result, measure.len)
    }

    /// `LAUNCH_SECRET`.
    ///
    /// # Errors
    /// What KVM and the firmware say.
    pub fn launch_secret(self, secret: Secret<'_>) -> Result<(), Refused> {
        self.packet(Command::LAUNCH_SECRET, secret)
    }

    /// `LAUNCH_FINISH`.
    ///
    /// # Errors
    /// What KVM and the firmware say.
    pub fn launch_finish(self) -> Result<(), Refused> {
        self.without_argument(Command::LAUNCH_FINISH, 0).inspect(|()| self.vm.launch_ended())
    }

    /// `SEND_START`, which writes the session that the recipient needs to `session`, so many bytes.
    ///
    /// # Errors
    /// What KVM and the firmware say.
    pub fn send_start(self, to: Recipient<'_>, session: (Memory<'_>, u32)) -> Result<(), Refused> {
        let at = |(memory, len): (Memory<'_>, u32)| memory.address(len.into());
        let mut argument = kvm_sev_send_start {
            pdh_cert_uaddr: at(to.certificate),
            pdh_cert_len: to.certificate.1,
            plat_certs_uaddr: at(to.chain),
            plat_certs_len: to.chain.1,
            amd_certs_uaddr: at(to.amd),
            amd_certs_len: to.amd.1,
            session_uaddr: at(session),
            session_len: session.1,
            ..Default::default()
        };
        // SAFETY: `address` has looked at the addresses.
        unsafe { self.issue(Command::SEND_START, &mut argument) }
    }

    /// `RECEIVE_START`: a guest comes from elsewhere; returns the firmware's handle of it.
    ///
    /// # Errors
    /// What KVM and the firmware say.
    pub fn receive_start(self, policy: SevPolicy, session: Session<'_>) -> Result<u32, Refused> {
        let Session { dh_certificate: (dh, dh_len), keys: (keys, keys_len) } = session;
        let mut start = kvm_sev_receive_start {
            policy: policy.0,
            pdh_uaddr: dh.address(dh_len.into()),
            pdh_len: dh_len,
            session_uaddr: keys.address(keys_len.into()),
            session_len: keys_len,
            ..Default::default()
        };
        // SAFETY: `address` has looked at the addresses.
        unsafe { self.issue(Command::RECEIVE_START, &mut start) }?;
        Ok(start.handle)
    }

    /// `RECEIVE_UPDATE_DATA`: memory of the guest.
    ///
    /// # Errors
    /// What KVM and the firmware say.
    pub fn receive_update_data(self, data: Secret<'_>) -> Result<(), Refused> {
        self.packet(Command::RECEIVE_UPDATE_DATA, data)
    }

    /// One of the two commands that move a packet: their arguments, `kvm_sev_launch_secret` and
    /// `kvm_sev_receive_update_data`, have the same fields (kernel: arch/x86/include/uapi/asm/kvm.h).
    fn packet(self, command: Command, packet: Secret<'_>) -> Result<(), Refused> {
        let at = |(memory, len): (Memory<'_>, u32)| memory.address(len.into());
        let mut argument = kvm_sev_launch_secret {
            hdr_uaddr: at(packet.header),
            hdr_len: packet.header.1,
            guest_uaddr: at(packet.guest),
            guest_len: packet.guest.1,
            trans_uaddr: at(packet.transport),
            trans_len: packet.transport.1,
            ..Default::default()
        };
        // SAFETY: `address` has looked at the addresses.
        unsafe { self.issue(command, &mut argument) }
    }

    /// `RECEIVE_FINISH`.
    ///
    /// # Errors
    /// What KVM and the firmware say.
    pub fn receive_finish(self) -> Result<(), Refused> {
        self.without_argument(Command::RECEIVE_FINISH, 0).inspect(|()| self.vm.launch_ended())
    }

    /// `GUEST_STATUS`: handle, policy and state (0 none, 1 launch, 2 secret, 3 running).
    ///
    /// # Errors
    /// What KVM and the firmware say.
    pub fn guest_status(self) -> Result<kvm_sev_guest_status, Refused> {
        let mut status = kvm_sev_guest_status::default();
        // SAFETY: the argument holds no address.
        unsafe { self.issue(Command::GUEST_STATUS, &mut status) }?;
        Ok(status)
    }

    /// `DBG_DECRYPT` of `len` bytes.
    ///
    /// # Errors
    /// What KVM and the firmware say.
    pub fn dbg_decrypt(self, from: Memory<'_>, to: Memory<'_>, len: u32) -> Result<(), Refused> {
        self.dbg(Command::DBG_DECRYPT, from, to, len)
    }

    /// `DBG_ENCRYPT` of `len` bytes.
    ///
    /// # Errors
    /// What KVM and the firmware say.
    pub fn dbg_encrypt(self, from: Memory<'_>, to: Memory<'_>, len: u32) -> Result<(), Refused> {
        self.dbg(Command::DBG_ENCRYPT, from, to, len)
    }

    fn dbg(self, command: Command, from: Memory<'_>, to: Memory<'_>, len: u32) -> Result<(), Refused> {
        let (src_uaddr, dst_uaddr) = (from.address(len.into()), to.address(len.into()));
        let mut argument = kvm_sev_dbg { src_uaddr, dst_uaddr, len, ..Default::default() };
        // SAFETY: `address` has looked at the addresses.
        unsafe { self.issue(command, &mut argument) }
    }

    /// `SNP_LAUNCH_START`.
    ///
    /// # Errors
    /// What KVM and the firmware say.
    pub fn snp_launch_start(self, policy: SnpPolicy, flags: u16) -> Result<(), Refused> {
        let mut start = kvm_sev_snp_launch_start { policy: policy.0, flags, ..Default::default() };
        // SAFETY: the argument holds no address.
        unsafe { self.issue(Command::SNP_LAUNCH_START, &mut start) }
    }

    /// `SNP_LAUNCH_UPDATE`, once; `update` becomes what is left to be done.
    ///
    /// # Errors
    /// What KVM and the firmware say. KVM then leaves `update` as it was.
    pub fn snp_launch_update(self, update: &mut Update<'_>) -> Result<(), Refused> {
        let before = update.source.address(update.len);
        let mut argument = kvm_sev_snp_launch_update {
            gfn_start: update.gfn,
            uaddr: before,
            len: update.len,
            type_: update.page_type,
            flags: update.flags,
            ..Default::default()
        };
        // SAFETY: `address` has looked at the address.
        unsafe { self.issue(Command::SNP_LAUNCH_UPDATE, &mut argument) }?;
        (update.gfn, update.len) = (argument.gfn_start, argument.len);
        if let Memory::In(_, offset) = &mut update.source {
            *offset += argument.uaddr - before;
        }
        Ok(())
    }

    /// `SNP_LAUNCH_FINISH`.
    ///
    /// # Errors
    /// What KVM and the firmware say.
    pub fn snp_launch_finish(self, finish: Finish<'_>) -> Result<(), Refused> {
        let mut argument = kvm_sev_snp_launch_finish {
            auth_key_en: finish.author_key.into(),
            vcek_disabled: finish.vcek_disabled.into(),
            host_data: finish.host_data,
            flags: finish.flags,
            ..Default::default()
        };
        if let Some((block, authentication)) = finish.id {
            argument.id_block_en = 1;
            argument.id_block_uaddr = block.address(kvm_bindings::KVM_SEV_SNP_ID_BLOCK_SIZE.into());
            argument.id_auth_uaddr = authentication.address(PAGE_SIZE);
        }
        // SAFETY: `address` has looked at the addresses.
        unsafe { self.issue(Command::SNP_LAUNCH_FINISH, &mut argument) }.inspect(|()| self.vm.launch_ended())
    }

    /// `SNP_ENABLE_REQ_CERTS`: extended guest requests exit to user space.
    ///
    /// # Errors
    /// As KVM says.
    pub fn snp_enable_req_certs(self) -> Result<(), Refused> {
        self.without_argument(Command::SNP_ENABLE_REQ_CERTS, 0)
    }

    /// `KVM_MEMORY_ENCRYPT_REG_REGION`: pins `bytes` bytes.
    ///
    /// # Errors
    /// The error number of the ioctl.
    pub fn register_region(self, memory: Memory<'_>, bytes: u64) -> Result<(), Errno> {
        self.vm.kvm().register_enc_memory_region(&region(memory, bytes)).map_err(errno::of_kvm)
    }

    /// `KVM_MEMORY_ENCRYPT_UNREG_REGION`: releases what was registered in the same words.
    ///
    /// # Errors
    /// The error number of the ioctl.
    pub fn unregister_region(self, memory: Memory<'_>, bytes: u64) -> Result<(), Errno> {
        self.vm.kvm().unregister_enc_memory_region(&region(memory, bytes)).map_err(errno::of_kvm)
    }

    /// # Safety
    /// See [`issue`].
    unsafe fn issue<T: Copy>(self, command: Command, argument: &mut T) -> Result<(), Refused> {
        if self.answers == Access::All {
            // SAFETY: the caller vouches for it.
            return unsafe { issue(self.vm, self.firmware, command, argument) };
        }
        let no_memory = |_| Refused { command, errno: Errno::ENOMEM, firmware: Firmware::NOT_ASKED };
        let copy = copy_for_kvm(*argument, self.answers).map_err(no_memory)?;
        // SAFETY: KVM reads the argument in the copy, of which the caller vouches as for the original, and cannot write it.
        unsafe { issue_at(self.vm, self.firmware, command, copy.addr()) }
    }
}

fn region(memory: Memory<'_>, bytes: u64) -> kvm_enc_region {
    kvm_enc_region { addr: memory.address(bytes), size: bytes }
}
