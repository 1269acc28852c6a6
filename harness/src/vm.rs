//! A VM: slots, capabilities, and the vCPUs and files made from it.
#![expect(unsafe_code, reason = "memslots hand host memory to a guest")]

use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::{kvm_enable_cap, kvm_userspace_memory_region, kvm_userspace_memory_region2};
use kvm_ioctls::VmFd;
use nix::errno::Errno;

use crate::errno;
use crate::guest_memfd::GuestMemfd;
use crate::host::Host;
use crate::host_action::HostAction;
use crate::mapping::{MapOptions, Mapping};
use crate::measure::EventLog;
use crate::memslot::{Memslot, SlotSpec};
use crate::outcome::{Outcome, Stop};
use crate::raw;
use crate::stats::Stats;
use crate::trace::Trace;
use crate::uapi::{Capability, GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP, HC_MAP_GPA_RANGE};
use crate::units::PageCount;
use crate::vcpu::Vcpu;
use crate::vm_core::Core;
use crate::vm_type::VmType;

/// A VM. Any thread may change slots and attributes while vCPUs run.
#[derive(Debug)]
pub struct Vm {
    core: Arc<Core>,
}

impl Vm {
    /// Makes a VM of a type.
    ///
    /// # Errors
    /// `Stop::Skip` with the reason if this host does not offer the type; `Stop::Fail` if it does and yet
    /// refuses.
    pub fn create(host: &Host, vm_type: VmType) -> Outcome<Vm> {
        Self::try_create(host, vm_type.kvm_type()).map_err(|errno| host.refused(vm_type, errno))
    }

    /// `KVM_CREATE_VM` with any type number.
    ///
    /// # Errors
    /// The error number of the ioctl.
    pub fn try_create(host: &Host, kvm_type: u64) -> Result<Vm, Errno> {
        Self::try_create_traced(host, kvm_type, host.trace())
    }

    /// As [`try_create`](Self::try_create), with the exits going to `trace`.
    pub(crate) fn try_create_traced(host: &Host, kvm_type: u64, trace: &Arc<Trace>) -> Result<Vm, Errno> {
        let fd = host.kvm().create_vm_with_type(kvm_type).map_err(errno::of_kvm)?;
        Ok(Vm { core: Arc::new(Core::new(fd, trace)) })
    }

    /// The descriptor, for what has no function of its own here.
    pub fn kvm(&self) -> &VmFd {
        &self.core.fd
    }

    /// Puts down that the secure processor has finished a launch of it.
    pub(crate) fn launch_ended(&self) {
        self.core.trace.launch_ended();
    }

    /// Puts down that it was launched so.
    pub(crate) fn launched(&self, log: EventLog) {
        self.core.trace.launched(log);
    }

    /// `KVM_CHECK_EXTENSION` of this VM; 0 for what it does not have.
    pub fn check_extension(&self, capability: Capability) -> i32 {
        self.core.fd.check_extension_raw(capability.number.into())
    }

    /// `KVM_ENABLE_CAP` of this VM.
    ///
    /// # Errors
    /// The error number of the ioctl.
    pub fn enable_cap(&self, capability: Capability, args: [u64; 4]) -> Result<(), Errno> {
        let request = kvm_enable_cap { cap: capability.number, args, ..Default::default() };
        self.core.fd.enable_cap(&request).map_err(errno::of_kvm)
    }

    /// `KVM_CREATE_IRQCHIP`: local APICs, I/O APIC and PICs are KVM's.
    ///
    /// # Errors
    /// `Stop::Fail` with the error number.
    pub fn create_irqchip(&self) -> Outcome {
        let result = self.core.fd.create_irq_chip().map_err(errno::of_kvm);
        result.map_err(|errno| Stop::Fail(format!("KVM_CREATE_IRQCHIP: {errno:?}")))
    }

    /// Lets the guest's conversion requests (`KVM_HC_MAP_GPA_RANGE`) exit to us.
    ///
    /// # Errors
    /// `Stop::Fail` with the error number.
    pub fn enable_map_gpa_range_exit(&self) -> Outcome {
        self.enable_cap(Capability::EXIT_HYPERCALL, [1 << HC_MAP_GPA_RANGE, 0, 0, 0])
            .map_err(|errno| Stop::Fail(format!("KVM_ENABLE_CAP(EXIT_HYPERCALL, MAP_GPA_RANGE): {errno:?}")))
    }

    /// Adds a slot and holds on to its mapping until the slot is deleted or the VM and its vCPUs are gone.
    ///
    /// # Errors
    /// `Stop::Error` if the spec reaches out of its mapping, `Stop::Fail` if KVM refuses.
    pub fn add_slot(&self, spec: SlotSpec) -> Outcome<Memslot> {
        let SlotSpec { slot, gpa, pages, .. } = spec;
        let region = spec.region();
        if !spec.mapping.as_ref().is_none_or(|mapping| mapping.contains(region.userspace_addr, pages.bytes())) {
            return Err(Stop::Error(format!(
                "slot {slot} of {} pages does not fit into its mapping from {:#x} on",
                pages.0, spec.mapping_offset
            )));
        }
        self.set_user_memory_region2_raw(&region, spec.mapping.as_ref()).map_err(|errno| {
            Stop::Fail(format!(
                "KVM_SET_USER_MEMORY_REGION2 of slot {slot}, {} pages at gpa {gpa}, flags {:#x}: {errno:?}",
                pages.0, region.flags
            ))
        })?;
        Ok(Memslot { slot, gpa, pages })
    }

    /// Deletes a slot.
    ///
    /// # Errors
    /// `Stop::Fail` if KVM refuses.
    pub fn delete_slot(&self, slot: u32) -> Outcome {
        let region = kvm_userspace_memory_region2 { slot, ..Default::default() };
        self.set_user_memory_region2_raw(&region, None)
            .map_err(|errno| Stop::Fail(format!("deleting slot {slot}: {errno:?}")))
    }

    /// `KVM_GET_DIRTY_LOG`: a bit for each page of a slot of `pages` pages that was written since it was asked
    /// last, the first page in bit 0 of the first word.
    ///
    /// # Errors
    /// The error number of the ioctl.
    pub fn dirty_log(&self, slot: u32, pages: PageCount) -> Result<Vec<u64>, Errno> {
        self.core.fd.get_dirty_log(slot, pages.bytes() as usize).map_err(errno::of_kvm)
    }

    /// `KVM_SET_USER_MEMORY_REGION2` with any values. `backing` is the mapping that holds `userspace_addr`;
    /// without it, or outside of it, the VM cannot have vCPUs: their guest would write to memory of others.
    ///
    /// # Errors
    /// The error number of the ioctl.
    ///
    /// # Panics
    /// If this VM has a vCPU and the region is not in `backing`: an error in the row, not in the kernel.
    pub fn set_user_memory_region2_raw(
        &self,
        region: &kvm_userspace_memory_region2,
        backing: Option<&Arc<Mapping>>,
    ) -> Result<(), Errno> {
        self.set_region(region, backing, |vm| {
            // SAFETY: `set_region` calls this only for memory that stays mapped as long as the slot lives,
            // or while there is no vCPU that could write to it.
            unsafe { vm.set_user_memory_region2(*region) }
        })
    }

    /// `KVM_SET_USER_MEMORY_REGION` with any values; otherwise as
    /// [`set_user_memory_region2_raw`](Self::set_user_memory_region2_raw).
    ///
    /// # Errors
    /// The error number of the ioctl.
    ///
    /// # Panics
    /// If this VM has a vCPU and the region is not in `backing`.
    pub fn set_user_memory_region_raw(
        &self,
        region: &kvm_userspace_memory_region,
        backing: Option<&Arc<Mapping>>,
    ) -> Result<(), Errno> {
        let as_region2 = kvm_userspace_memory_region2 {
            slot: region.slot,
            flags: region.flags,
            guest_phys_addr: region.guest_phys_addr,
            memory_size: region.memory_size,
            userspace_addr: region.userspace_addr,
            ..Default::default()
        };
        self.set_region(&as_region2, backing, |vm| {
            // SAFETY: as for version 2 above.
            unsafe { vm.set_user_memory_region(*region) }
        })
    }

    fn set_region(
        &self,
        region: &kvm_userspace_memory_region2,
        backing: Option<&Arc<Mapping>>,
        ioctl: impl FnOnce(&VmFd) -> Result<(), kvm_ioctls::Error>,
    ) -> Result<(), Errno> {
        let mut slots = self.core.slots();
        assert!(
            slots.admits(region, backing),
            "slot {} of a VM with vCPUs is to cover {:#x} bytes at {:#x}, which are not in the backing",
            region.slot,
            region.memory_size,
            region.userspace_addr
        );
        let came = ioctl(&self.core.fd).map_err(errno::of_kvm);
        let (slot, gpa, bytes) = (region.slot, region.guest_phys_addr, region.memory_size);
        self.host_did(HostAction::SetMemoryRegion { slot, gpa, bytes }, &came);
        came?;
        slots.accepted(region, backing);
        Ok(())
    }

    /// Notes in the trace what the host has done to this VM's memory.
    pub(crate) fn host_did(&self, action: HostAction, came: &Result<(), Errno>) {
        self.core.trace.host_did(self.core.number, action, came);
    }

    /// A guest_memfd of `size` bytes that the host maps too (`MMAP | INIT_SHARED`), and all of it mapped.
    ///
    /// # Errors
    /// [`Stop::Fail`] if KVM refuses the file or the mapping.
    pub fn mapped_guest_memfd(&self, size: u64) -> Outcome<(Mapping, Arc<GuestMemfd>)> {
        let file = self.create_guest_memfd(size, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)?;
        let mapping = file
            .mmap(0, size, MapOptions::new().shared())
            .map_err(|errno| Stop::Fail(format!("mmap of a guest_memfd of {size:#x} bytes: {errno:?}")))?;
        Ok((mapping, file))
    }

    /// Makes a guest_memfd of `size` bytes.
    ///
    /// # Errors
    /// `Stop::Fail` with the error number.
    pub fn create_guest_memfd(&self, size: u64, flags: u64) -> Outcome<Arc<GuestMemfd>> {
        self.create_guest_memfd_raw(size, flags).map(Arc::new).map_err(|errno| {
            Stop::Fail(format!("KVM_CREATE_GUEST_MEMFD of {size:#x} bytes with flags {flags:#x}: {errno:?}"))
        })
    }

    /// `KVM_CREATE_GUEST_MEMFD` with any values.
    ///
    /// # Errors
    /// The error number of the ioctl.
    pub fn create_guest_memfd_raw(&self, size: u64, flags: u64) -> Result<GuestMemfd, Errno> {
        Ok(GuestMemfd::create(&self.core.fd, size, flags)?.traced(&self.core.trace, self.core.number))
    }

    /// Makes vCPU `id` and the thread that will run it.
    ///
    /// # Errors
    /// `Stop::Error` if a slot covers memory that nobody holds on to; `Stop::Fail` if KVM refuses.
    pub fn create_vcpu(&self, id: u64) -> Outcome<Vcpu> {
        self.core.slots().admit_vcpu().map_err(|(slot, addr)| {
            Stop::Error(format!("no vCPU can run: slot {slot} covers host memory at {addr:#x} that has no owner"))
        })?;
        Vcpu::create(Arc::clone(&self.core), id)
    }

    /// The VM's statistics.
    ///
    /// # Errors
    /// `Stop::Fail` if KVM refuses, `Stop::Error` if they are malformed.
    pub fn stats(&self) -> Outcome<Stats> {
        let file = raw::stats_fd(self.core.fd.as_raw_fd())
            .map_err(|errno| Stop::Fail(format!("KVM_GET_STATS_FD of the VM: {errno:?}")))?;
        Stats::new(file)
    }

    /// Any VM ioctl with a small number as its argument, which for requests that take a pointer is one that
    /// cannot be accessed.
    ///
    /// # Errors
    /// The error number of the ioctl.
    pub fn ioctl_raw(&self, request: u64, argument: u16) -> Result<i32, Errno> {
        raw::with_small_argument(&self.core.fd, request, argument)
    }
}
