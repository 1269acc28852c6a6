//! Ioctls of VMs.
//!
//! Source: `virt/kvm/kvm_main.c:kvm_vm_ioctl`, `arch/x86/kvm/x86.c:kvm_arch_vm_ioctl`,
//! `kvm_vm_ioctl_enable_cap`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::*;
use nix::errno::Errno;

use crate::capability::{
    self, EXIT_HYPERCALL_MASK, INITIALLY_SET, MANUAL_PROTECT, MAX_IRQ_ROUTES, MAX_VCPU_IDS, QUIRK_SLOT_ZAP_ALL, QUIRKS,
    X2APIC_API_FLAGS,
};
use crate::defect::Defect;
use crate::descriptors::{self, Object, hand_out};
use crate::dispatch::{Argument, IoctlResult, Row};
use crate::guest_memfd::GuestMemfd;
use crate::host_memory::{PAGE_SHIFT, PAGE_SIZE};
use crate::memslot::{LOG_DIRTY_PAGES, READONLY, Request, USER_SLOTS};
use crate::time;
use crate::user::{self, ListHeader};
use crate::vcpu;
use crate::vm::{Irqchip, Vm};
use crate::vm_type::VmType;

/// The ioctls.
pub(crate) const IOCTLS: &[Row<Arc<Vm>>] = &[
    (0xae41, "CREATE_VCPU", |vm, Argument(id)| vcpu::create(vm, id)),
    (0x4020_ae46, "SET_USER_MEMORY_REGION", set_region),
    (0x40a0_ae49, "SET_USER_MEMORY_REGION2", set_region2),
    (0x4020_aed2, "SET_MEMORY_ATTRIBUTES", set_attributes),
    (0xc040_aed4, "CREATE_GUEST_MEMFD", create_guest_memfd),
    (0xae03, "CHECK_EXTENSION", |vm, Argument(number)| Ok(capability::check(number, vm.options, Some(vm.kind)))),
    (0x4068_aea3, "ENABLE_CAP", enable_cap),
    (0x4040_ae79, "IOEVENTFD", |vm, argument| vm.ioeventfds.change(&argument.read()?)),
    (0xaece, "GET_STATS_FD", get_stats_fd),
    (0x4010_ae42, "GET_DIRTY_LOG", get_dirty_log),
    (0xc018_aec0, "CLEAR_DIRTY_LOG", clear_dirty_log),
    (
        0xae47,
        "SET_TSS_ADDR",
        |_, Argument(address)| if address > u64::from(u32::MAX) - 3 * PAGE_SIZE { Err(Errno::EINVAL) } else { Ok(0) },
    ),
    (0x4008_ae48, "SET_IDENTITY_MAP_ADDR", set_identity_map),
    (0xae44, "SET_NR_MMU_PAGES", |_, Argument(pages)| if pages < 64 { Err(Errno::EINVAL) } else { Ok(0) }),
    (0xae60, "CREATE_IRQCHIP", create_irqchip),
    (0x4040_ae77, "CREATE_PIT2", create_pit),
    (0xae64, "CREATE_PIT", |vm, _| create_pit_unread(vm)),
    (0x4008_ae6a, "SET_GSI_ROUTING", set_gsi_routing),
    (0xae78, "SET_BOOT_CPU_ID", set_boot_cpu),
    (0xaea2, "SET_TSC_KHZ", set_tsc_khz),
    (0xaea3, "GET_TSC_KHZ", |vm, _| Ok(vm.config().tsc_khz.unwrap_or(time::TSC_KHZ) as i32)),
    (0x8030_ae7c, "GET_CLOCK", get_clock),
    (0x4030_ae7b, "SET_CLOCK", |_, argument| {
        argument
            .read::<kvm_clock_data>()
            .and_then(|clock| if clock.flags & !0xe != 0 { Err(Errno::EINVAL) } else { Ok(0) })
    }),
    (0x8010_aebb, "MEMORY_ENCRYPT_REG_REGION", |_, argument| argument.read::<kvm_enc_region>().and(Err(Errno::ENOTTY))),
    (0x8010_aebc, "MEMORY_ENCRYPT_UNREG_REGION", |_, argument| {
        argument.read::<kvm_enc_region>().and(Err(Errno::ENOTTY))
    }),
];

fn set_region(vm: &Arc<Vm>, argument: Argument) -> IoctlResult {
    let region: kvm_userspace_memory_region = argument.read()?;
    if region.flags & !(LOG_DIRTY_PAGES | READONLY) != 0 && !vm.options.has(Defect::SlotFlagsUnchecked) {
        return Err(Errno::EINVAL);
    }
    let request = Request {
        slot: region.slot,
        flags: region.flags,
        guest_address: region.guest_phys_addr,
        bytes: region.memory_size,
        host_address: region.userspace_addr,
        file_offset: 0,
    };
    set_slot(vm, &request, u32::MAX)
}

fn set_region2(vm: &Arc<Vm>, argument: Argument) -> IoctlResult {
    let region: kvm_userspace_memory_region2 = argument.read()?;
    let request = Request {
        slot: region.slot,
        flags: region.flags,
        guest_address: region.guest_phys_addr,
        bytes: region.memory_size,
        host_address: region.userspace_addr,
        file_offset: region.guest_memfd_offset,
    };
    set_slot(vm, &request, region.guest_memfd)
}

fn set_slot(vm: &Arc<Vm>, request: &Request, file: u32) -> IoctlResult {
    if request.slot & 0xffff >= USER_SLOTS && !vm.options.has(Defect::SlotIdUnchecked) {
        return Err(Errno::EINVAL);
    }
    let zap_all = vm.kind == VmType::Default && vm.has_quirk(QUIRK_SLOT_ZAP_ALL);
    let initially_dirty = vm.manual_dirty_log.load(Ordering::SeqCst) & INITIALLY_SET != 0;
    vm.memory.set_slot(request, zap_all, initially_dirty, || find_file(vm, file as i32)).map(|()| 0)
}

/// The guest_memfd behind a descriptor, for a slot of this VM.
///
/// # Errors
/// EBADF if there is nothing behind it, EINVAL if something else is.
fn find_file(vm: &Arc<Vm>, fd: i32) -> Result<(Arc<GuestMemfd>, i32), Errno> {
    match descriptors::find(fd) {
        Some(Object::GuestMemfd(file)) if Arc::ptr_eq(file.vm(), vm) || vm.options.has(Defect::ForeignFileAccepted) => {
            Ok((file, fd))
        }
        Some(_) => Err(Errno::EINVAL),
        None if descriptors::is_open(fd) => Err(Errno::EINVAL),
        None => Err(Errno::EBADF),
    }
}

fn set_attributes(vm: &Arc<Vm>, argument: Argument) -> IoctlResult {
    let kvm_memory_attributes { mut address, mut size, attributes, flags } = argument.read()?;
    let private_bit = u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE);
    let known =
        if vm.kind.has_private_mem() || vm.options.has(Defect::AttributeOfPlainVmAccepted) { private_bit } else { 0 };
    if vm.options.has(Defect::AttributeUnalignedAccepted) {
        address &= !(PAGE_SIZE - 1);
        size = size.next_multiple_of(PAGE_SIZE);
    }
    if vm.options.has(Defect::AttributeEmptyRangeAccepted) && (size == 0 || address.checked_add(size).is_none()) {
        return Ok(0);
    }
    let lax = vm.options.has(Defect::AttributeFlagsUnchecked);
    if !lax && (flags != 0 || attributes & !known != 0)
        || size == 0
        || address.checked_add(size).is_none()
        || !address.is_multiple_of(PAGE_SIZE)
        || !size.is_multiple_of(PAGE_SIZE)
    {
        return Err(Errno::EINVAL);
    }
    vm.memory.set_private(address >> PAGE_SHIFT..(address + size) >> PAGE_SHIFT, attributes & known != 0);
    Ok(0)
}

fn create_guest_memfd(vm: &Arc<Vm>, argument: Argument) -> IoctlResult {
    let request: kvm_create_guest_memfd = argument.read()?;
    let (fd, file) = GuestMemfd::create(vm, request.size, request.flags)?;
    descriptors::register(fd, Object::GuestMemfd(file));
    Ok(fd)
}

fn get_stats_fd(vm: &Arc<Vm>, _: Argument) -> IoctlResult {
    hand_out(c"anon_inode:kvm-vm-stats", 0, libc::MFD_CLOEXEC, Object::VmStats(Arc::clone(vm)))
}

fn enable_cap(vm: &Arc<Vm>, argument: Argument) -> IoctlResult {
    let cap: kvm_enable_cap = argument.read()?;
    let [value, ..] = cap.args;
    let within = |allowed: u64| if value & !allowed == 0 { Ok(()) } else { Err(Errno::EINVAL) };
    if cap.flags != 0 {
        return Err(Errno::EINVAL);
    }
    match cap.cap {
        KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 => {
            within(if value & MANUAL_PROTECT != 0 { MANUAL_PROTECT | INITIALLY_SET } else { MANUAL_PROTECT })?;
            vm.manual_dirty_log.store(value, Ordering::SeqCst);
        }
        KVM_CAP_HALT_POLL => within(u32::MAX.into())?,
        KVM_CAP_DISABLE_QUIRKS2 => {
            within(QUIRKS)?;
            vm.disabled_quirks.fetch_or(value, Ordering::SeqCst);
        }
        KVM_CAP_DISABLE_QUIRKS => {
            vm.disabled_quirks.fetch_or(value & QUIRKS, Ordering::SeqCst);
        }
        KVM_CAP_SPLIT_IRQCHIP => {
            let mut config = vm.config();
            if value > MAX_IRQ_ROUTES {
                return Err(Errno::EINVAL);
            }
            if config.irqchip != Irqchip::None || !config.vcpus.is_empty() {
                return Err(Errno::EEXIST);
            }
            config.irqchip = Irqchip::Split;
        }
        KVM_CAP_X2APIC_API => within(X2APIC_API_FLAGS)?,
        KVM_CAP_MSR_PLATFORM_INFO => vm.hides_platform_info.store(value == 0, Ordering::SeqCst),
        KVM_CAP_EXCEPTION_PAYLOAD => vm.exception_payload.store(value != 0, Ordering::SeqCst),
        KVM_CAP_X86_TRIPLE_FAULT_EVENT => vm.triple_fault_event.store(value != 0, Ordering::SeqCst),
        KVM_CAP_EXIT_HYPERCALL => {
            within(EXIT_HYPERCALL_MASK)?;
            vm.exit_hypercalls.store(value, Ordering::SeqCst);
        }
        KVM_CAP_EXIT_ON_EMULATION_FAILURE => {
            within(1)?;
            vm.exit_on_emulation_failure.store(value != 0, Ordering::SeqCst);
        }
        KVM_CAP_MAX_VCPU_ID => {
            let mut config = vm.config();
            let allowed = value <= MAX_VCPU_IDS
                && config.bsp_id <= value
                && config.max_vcpu_ids.is_none_or(|max| max == value || max == 0);
            if !allowed {
                return Err(Errno::EINVAL);
            }
            config.max_vcpu_ids = Some(value);
        }
        unknown => {
            crate::log::once(|| format!("KVM_ENABLE_CAP of capability {unknown} of a VM: the model does not have it"));
            return Err(Errno::EINVAL);
        }
    }
    Ok(0)
}

/// The slot id of a dirty log request.
///
/// # Errors
/// EINVAL.
fn logged_slot(vm: &Vm, id: u32) -> Result<u32, Errno> {
    let allowed = id >> 16 < vm.kind.address_spaces() && id & 0xffff < USER_SLOTS;
    if allowed { Ok(id) } else { Err(Errno::EINVAL) }
}

fn get_dirty_log(vm: &Arc<Vm>, argument: Argument) -> IoctlResult {
    let request: kvm_dirty_log = argument.read()?;
    let slot = logged_slot(vm, request.slot)?;
    let by_hand = vm.manual_dirty_log.load(Ordering::SeqCst) != 0;
    let bitmap = vm.memory.dirty_log(slot, by_hand)?;
    let to = dirty_bitmap_address(argument, std::mem::offset_of!(kvm_dirty_log, __bindgen_anon_1))?;
    user::write_slice(to, &bitmap).map(|()| 0)
}

fn clear_dirty_log(vm: &Arc<Vm>, argument: Argument) -> IoctlResult {
    let request: kvm_clear_dirty_log = argument.read()?;
    let slot = logged_slot(vm, request.slot)?;
    if !request.first_page.is_multiple_of(64) {
        return Err(Errno::EINVAL);
    }
    let pages = u64::from(request.num_pages);
    let from = dirty_bitmap_address(argument, std::mem::offset_of!(kvm_clear_dirty_log, __bindgen_anon_1))?;
    let mask = || user::read_slice(from, pages.div_ceil(64) as usize);
    vm.memory.clear_dirty_log(slot, request.first_page, pages, mask).map(|()| 0)
}

/// The pointer to the bitmap, which the bindings have as a union.
///
/// # Errors
/// EFAULT.
fn dirty_bitmap_address(argument: Argument, offset: usize) -> Result<u64, Errno> {
    user::read(argument.after(offset))
}

fn set_identity_map(vm: &Arc<Vm>, argument: Argument) -> IoctlResult {
    let config = vm.config();
    if !config.vcpus.is_empty() {
        return Err(Errno::EINVAL);
    }
    argument.read::<u64>().map(|_| 0)
}

fn create_irqchip(vm: &Arc<Vm>, _: Argument) -> IoctlResult {
    let mut config = vm.config();
    if config.irqchip != Irqchip::None {
        return Err(Errno::EEXIST);
    }
    if !config.vcpus.is_empty() {
        return Err(Errno::EINVAL);
    }
    config.irqchip = Irqchip::Full;
    Ok(0)
}

fn create_pit(vm: &Arc<Vm>, argument: Argument) -> IoctlResult {
    argument.read::<kvm_pit_config>()?;
    create_pit_unread(vm)
}

fn create_pit_unread(vm: &Arc<Vm>) -> IoctlResult {
    let mut config = vm.config();
    if config.has_pit {
        return Err(Errno::EEXIST);
    }
    if config.irqchip != Irqchip::Full {
        return Err(Errno::ENOENT);
    }
    config.has_pit = true;
    Ok(0)
}

fn set_gsi_routing(vm: &Arc<Vm>, argument: Argument) -> IoctlResult {
    let [count, flags]: ListHeader = argument.read()?;
    if vm.config().irqchip == Irqchip::None || u64::from(count) > MAX_IRQ_ROUTES || flags != 0 {
        return Err(Errno::EINVAL);
    }
    // The model has no lines that could be routed; the entries only have to be there.
    let entries = argument.after(size_of::<ListHeader>());
    user::read_slice::<u8>(entries, count as usize * size_of::<kvm_irq_routing_entry>()).map(|_| 0)
}

fn set_boot_cpu(vm: &Arc<Vm>, Argument(id): Argument) -> IoctlResult {
    let mut config = vm.config();
    if !config.vcpus.is_empty() {
        return Err(Errno::EBUSY);
    }
    if id > MAX_VCPU_IDS || config.max_vcpu_ids.is_some_and(|max| max != 0 && id > max) {
        return Err(Errno::EINVAL);
    }
    config.bsp_id = id;
    Ok(0)
}

fn set_tsc_khz(vm: &Arc<Vm>, Argument(khz): Argument) -> IoctlResult {
    let mut config = vm.config();
    if !config.vcpus.is_empty() {
        return Err(Errno::EINVAL);
    }
    config.tsc_khz = Some(if khz as u32 == 0 { time::TSC_KHZ } else { khz as u32 });
    Ok(0)
}

fn get_clock(_: &Arc<Vm>, argument: Argument) -> IoctlResult {
    let mut clock: kvm_clock_data = user::zeroed();
    clock.clock = time::nanoseconds();
    clock.host_tsc = time::nanoseconds();
    clock.realtime = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    clock.flags = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
    argument.write(&clock)
}
