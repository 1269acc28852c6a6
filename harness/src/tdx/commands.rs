//! All commands, each in any state of the VM and with any values: rows see here what KVM and the module refuse.
#![expect(unsafe_code, reason = "commands are told addresses of memory")]

use std::os::fd::AsRawFd;

use kvm_bindings::kvm_cpuid_entry2;
use nix::errno::Errno;

use super::capabilities::{Capabilities, ENTRY_WORDS, HEADER_WORDS, decode_list, encode_entry};
use super::command::{Command, Envelope, Refused, issue};
use crate::outcome::Outcome;
use crate::sev::Memory;
use crate::units::{Gpa, PAGE_SIZE};
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// The commands of one VM and of its vCPUs. Each returns what KVM and the module say of it.
#[derive(Clone, Copy, Debug)]
pub struct Commands<'a> {
    vm: &'a Vm,
}

/// What `INIT_VM` is told (`struct kvm_tdx_init_vm`).
#[derive(Clone, Debug)]
pub struct InitVm {
    /// Attributes of the TD.
    pub attributes: u64,
    /// States that it has.
    pub xfam: u64,
    /// What its owner says of it, which reports repeat.
    pub mrconfigid: [u8; 48],
    /// Who its owner is, likewise.
    pub mrowner: [u8; 48],
    /// What its owner says of its configuration, likewise.
    pub mrownerconfig: [u8; 48],
    /// Zero.
    pub reserved: [u64; 12],
    /// Zero.
    pub padding: u32,
    /// CPUID as far as it is configured.
    pub cpuid: Vec<kvm_cpuid_entry2>,
}

impl InitVm {
    /// With these attributes and states, and no more.
    pub fn new(attributes: u64, xfam: u64, cpuid: Vec<kvm_cpuid_entry2>) -> InitVm {
        let (nothing, reserved) = ([0; 48], [0; 12]);
        let (mrconfigid, mrowner, mrownerconfig) = (nothing, nothing, nothing);
        InitVm { attributes, xfam, mrconfigid, mrowner, mrownerconfig, reserved, padding: 0, cpuid }
    }

    fn encode(&self) -> Vec<u64> {
        let mut words = vec![self.attributes, self.xfam];
        for register in [&self.mrconfigid, &self.mrowner, &self.mrownerconfig] {
            words.extend(register.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)));
        }
        words.extend(self.reserved);
        words.push(self.cpuid.len() as u64 | u64::from(self.padding) << 32);
        words.extend(self.cpuid.iter().flat_map(encode_entry));
        words
    }
}

/// What `INIT_MEM_REGION` is told (`struct kvm_tdx_init_mem_region`); afterwards what is left to be done.
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    /// Where the content is.
    pub source: Memory<'a>,
    /// Where the TD has it.
    pub gpa: Gpa,
    /// How many pages.
    pub pages: u64,
    /// [`MEASURE_MEMORY_REGION`](super::MEASURE_MEMORY_REGION) or 0.
    pub flags: u32,
}

impl<'a> Commands<'a> {
    /// The commands of `vm`.
    pub fn new(vm: &'a Vm) -> Commands<'a> {
        Commands { vm }
    }

    /// The VM.
    pub fn vm(self) -> &'a Vm {
        self.vm
    }

    /// Any command of the VM with these flags, and an argument that cannot be accessed.
    ///
    /// # Errors
    /// What KVM and the module say.
    pub fn without_argument(self, command: Command, flags: u32) -> Result<(), Refused> {
        // SAFETY: nothing is mapped at 0 (vm.mmap_min_addr).
        unsafe { self.on_vm(command, flags, 0) }
    }

    /// The same, with something in the place where KVM tells what the module has said.
    ///
    /// # Errors
    /// What KVM and the module say.
    pub fn with_hw_error(self, command: Command, hw_error: u64) -> Result<(), Refused> {
        // SAFETY: nothing is mapped at 0 (vm.mmap_min_addr).
        unsafe { issue(self.vm.kvm().as_raw_fd(), Envelope { id: command.0, hw_error, ..Envelope::default() }) }
    }

    /// The same of a vCPU.
    ///
    /// # Errors
    /// `Stop` if the vCPU runs; what KVM and the module say.
    pub fn vcpu_without_argument(
        self,
        vcpu: &Vcpu,
        command: Command,
        flags: u32,
        number: u16,
    ) -> Outcome<Result<(), Refused>> {
        let envelope = Envelope { id: command.0, flags, data: number.into(), hw_error: 0 };
        // SAFETY: nothing is mapped below 64 KiB (vm.mmap_min_addr).
        Ok(unsafe { issue(vcpu.kvm()?.as_raw_fd(), envelope) })
    }

    /// `CAPABILITIES`, with room for `entries` leaves of CPUID.
    ///
    /// # Errors
    /// What KVM says: E2BIG if there are more.
    pub fn capabilities(self, entries: u32) -> Result<Capabilities, Refused> {
        let mut words = vec![0; HEADER_WORDS + 1 + entries as usize * ENTRY_WORDS];
        words[HEADER_WORDS] = entries.into();
        // SAFETY: KVM writes as many entries as it was told there is room for.
        unsafe { self.on_vm(Command::CAPABILITIES, 0, words.as_mut_ptr().expose_provenance() as u64) }?;
        Ok(Capabilities::decode(&words))
    }

    /// `INIT_VM`: makes a TD of the VM, with these flags.
    ///
    /// # Errors
    /// What KVM and the module say.
    pub fn init_vm(self, init: &InitVm, flags: u32) -> Result<(), Refused> {
        let mut words = init.encode();
        // SAFETY: KVM reads as many entries as it was told there are.
        unsafe { self.on_vm(Command::INIT_VM, flags, words.as_mut_ptr().expose_provenance() as u64) }
    }

    /// `FINALIZE_VM`: the TD may run.
    ///
    /// # Errors
    /// What KVM and the module say.
    pub fn finalize(self) -> Result<(), Refused> {
        self.without_argument(Command::FINALIZE_VM, 0)
    }

    /// `INIT_VCPU`: the vCPU begins with this in RCX and R8.
    ///
    /// # Errors
    /// `Stop` if the vCPU runs; what KVM says.
    pub fn init_vcpu(self, vcpu: &Vcpu, argument: u64) -> Outcome<Result<(), Refused>> {
        let envelope = Envelope { id: Command::INIT_VCPU.0, data: argument, ..Envelope::default() };
        // SAFETY: the argument is a number (vmx/tdx.c: tdx_vcpu_init).
        Ok(unsafe { issue(vcpu.kvm()?.as_raw_fd(), envelope) })
    }

    /// `INIT_MEM_REGION`: adds pages. `region` is left as KVM leaves it, after an error, too.
    ///
    /// # Errors
    /// `Stop` if the vCPU runs; what KVM says.
    ///
    /// # Panics
    /// If the pages are not in the source's mapping.
    pub fn init_mem_region(self, vcpu: &Vcpu, region: &mut Region<'_>) -> Outcome<Result<(), Refused>> {
        let source = region.source.address(region.pages.saturating_mul(PAGE_SIZE));
        let mut words = [source, region.gpa.0, region.pages];
        let envelope = Envelope {
            id: Command::INIT_MEM_REGION.0,
            flags: region.flags,
            data: words.as_mut_ptr().expose_provenance() as u64,
            hw_error: 0,
        };
        // SAFETY: `address` has looked at the source, which KVM only reads; the structure is read and written back.
        let result = unsafe { issue(vcpu.kvm()?.as_raw_fd(), envelope) };
        if let Memory::In(_, offset) = &mut region.source {
            *offset += words[0].wrapping_sub(source);
        }
        (region.gpa, region.pages) = (Gpa(words[1]), words[2]);
        Ok(result)
    }

    /// `GET_CPUID`: what the module will answer, with room for `entries` leaves; also how many there are as KVM says.
    ///
    /// # Errors
    /// `Stop` if the vCPU runs; what KVM says.
    pub fn cpuid(self, vcpu: &Vcpu, entries: u32) -> Outcome<(Result<Vec<kvm_cpuid_entry2>, Refused>, u32)> {
        let mut words = vec![0_u64; 1 + entries as usize * ENTRY_WORDS];
        words[0] = entries.into();
        let data = words.as_mut_ptr().expose_provenance() as u64;
        let envelope = Envelope { id: Command::GET_CPUID.0, flags: 0, data, hw_error: 0 };
        // SAFETY: KVM writes as many entries as it was told there is room for.
        let result = unsafe { issue(vcpu.kvm()?.as_raw_fd(), envelope) };
        Ok((result.map(|()| decode_list(&words)), words[0] as u32))
    }

    /// # Safety
    /// See [`issue`].
    unsafe fn on_vm(self, command: Command, flags: u32, data: u64) -> Result<(), Refused> {
        let envelope = Envelope { id: command.0, flags, data, hw_error: 0 };
        // SAFETY: the caller vouches for the address.
        unsafe { issue(self.vm.kvm().as_raw_fd(), envelope) }
    }
}

impl Refused {
    /// Whether the same may be tried again.
    pub fn is_transient(&self) -> bool {
        matches!(self.errno, Errno::EAGAIN | Errno::EBUSY | Errno::EINTR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// struct kvm_tdx_init_vm: 256 bytes, then nent and padding, then entries of 40 bytes.
    #[test]
    fn init_vm_is_laid_out_as_the_kernel_reads_it() {
        let entry = kvm_cpuid_entry2 { function: 0x8000_0008, eax: 48 << 16, ..Default::default() };
        let init = InitVm { mrowner: [2; 48], mrownerconfig: [3; 48], ..InitVm::new(1 << 28, 7, vec![entry]) };
        let words = init.encode();
        assert_eq!(words.len() * 8, 256 + 8 + 40);
        assert_eq!((words[0], words[1], words[2]), (1 << 28, 7, 0));
        assert_eq!((words[64 / 8], words[112 / 8]), (0x0202_0202_0202_0202, 0x0303_0303_0303_0303));
        assert_eq!((words[32], words[33], words[34] >> 32), (1, 0x8000_0008, 48 << 16));
    }
}
