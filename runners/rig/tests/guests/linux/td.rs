//! A TD: its vCPUs begin at the reset vector, where a loader is, and there is no interrupt controller but the local APICs.

use std::sync::Arc;

use privet_harness::host::Host;
use privet_harness::launch::tdx::{Launch, Measured};
use privet_harness::launch::{RESET_PAGE, reset_page};
use privet_harness::mapping::Mapping;
use privet_harness::memslot::SlotSpec;
use privet_harness::outcome::Outcome;
use privet_harness::page_tables::PageTables;
use privet_harness::tdx::SEPT_VE_DISABLE;
use privet_harness::units::{Gpa, Gva, PAGE_SIZE, PageCount};
use privet_harness::vcpu::Vcpu;
use privet_harness::vm::Vm;

use super::boot::{self, Boot, MAILBOX, Piece, TD_FIRMWARE};
use super::launch::{Launched, content, slot};
use super::{LARGE_PAGE, broken, rest_of, td_loader};

const LOADER: u64 = MAILBOX + PAGE_SIZE;
const PAGE_TABLES: u64 = LOADER + PAGE_SIZE;
const RESET_SLOT: u32 = 1;

/// Launches the TD with so many processors: all of its memory is private, and what no piece fills is accepted by the loader.
///
/// # Errors
/// What KVM and the module refuse.
pub(crate) fn start(host: &Host, vm: &Vm, boot: Boot, processors: u8) -> Outcome<Launched> {
    let mut tables = PageTables::new(Gpa(PAGE_TABLES));
    tables.map_large(Gva(0), Gpa(0), boot::MEMORY / LARGE_PAGE);
    let reset = Gpa(RESET_PAGE.0 & !(LARGE_PAGE - 1));
    tables.map_large(Gva(reset.0), reset, 1);
    let mut pieces = boot.pieces;
    pieces.push(Piece::new(PAGE_TABLES, tables.bytes()));
    let filled = pieces.iter().map(Piece::range).chain(std::iter::once(TD_FIRMWARE));
    let unaccepted = rest_of(0..boot::MEMORY, filled.collect());
    let loader = td_loader::loader(LOADER, &unaccepted, boot::BOOT_PARAMS, boot.entry, MAILBOX);
    pieces.push(Piece::new(LOADER, loader.map_err(|error| broken(&error))?));
    pieces.push(Piece::new(MAILBOX, vec![0; PAGE_SIZE as usize]));

    // Linux wants no #VE for memory that it has not accepted.
    let mut launch = Launch::create(vm, host, SEPT_VE_DISABLE)?;
    let memory = content(&pieces)?;
    let gmem = vm.create_guest_memfd(boot::MEMORY + PAGE_SIZE, 0)?;
    vm.add_slot(slot(&memory).with_gmem(&gmem, 0))?;
    let vector = Arc::new(Mapping::anonymous(PAGE_SIZE)?);
    vector.write(0, &reset_page(LOADER, tables.root()))?;
    vm.add_slot(SlotSpec::shared(RESET_SLOT, RESET_PAGE, PageCount(1), &vector).with_gmem(&gmem, boot::MEMORY))?;
    vm.set_private(Gpa(0), PageCount::of_bytes(boot::MEMORY))?;
    vm.set_private(RESET_PAGE, PageCount(1))?;

    let vcpus: Vec<Vcpu> = (0..processors).map(|id| launch.vcpu(id.into(), 0)).collect::<Outcome<_>>()?;
    for piece in &pieces {
        launch.add(&vcpus[0], Measured::No, Gpa(piece.gpa), &memory, piece.range())?;
    }
    launch.add(&vcpus[0], Measured::Yes, RESET_PAGE, &vector, 0..PAGE_SIZE)?;
    launch.finalize()?;
    Ok(Launched { vcpus, _gmem: Some(gmem) })
}
