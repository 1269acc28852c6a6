//! Security version numbers of the chip's firmware (56860, "TCB_VERSION"; the layout of Turin is that of the crate `sev`, too,
//! firmware/host/types/snp.rs: from_turin_bytes).

use serde::{Deserialize, Serialize};

/// How they lie in 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TcbLayout {
    /// Of Milan and Genoa.
    Milan,
    /// Of Turin, which has a part more.
    Turin,
}

/// The numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::psp) struct TcbVersion {
    pub(super) layout: TcbLayout,
    /// The firmware's own processor; 0 before Turin.
    fmc: u8,
    pub(super) boot_loader: u8,
    pub(super) tee: u8,
    pub(super) snp: u8,
    pub(super) microcode: u8,
}

impl TcbVersion {
    /// Of this firmware. From SNP 0x1B on, on Turin 4, Linux takes SEV-ES for disabled (svm/sev.c:
    /// sev_firmware_supported_vm_types).
    pub(super) fn current(layout: TcbLayout) -> TcbVersion {
        match layout {
            TcbLayout::Milan => TcbVersion { layout, fmc: 0, boot_loader: 10, tee: 0, snp: 0x17, microcode: 0x54 },
            TcbLayout::Turin => TcbVersion { layout, fmc: 1, boot_loader: 1, tee: 1, snp: 3, microcode: 0x50 },
        }
    }

    pub(super) fn bytes(self) -> [u8; 8] {
        let TcbVersion { fmc, boot_loader, tee, snp, microcode, .. } = self;
        match self.layout {
            TcbLayout::Milan => [boot_loader, tee, 0, 0, 0, 0, snp, microcode],
            TcbLayout::Turin => [fmc, boot_loader, tee, snp, 0, 0, 0, microcode],
        }
    }

    /// Reads one; none with a reserved byte that is not zero.
    pub(super) fn decode(bytes: [u8; 8], layout: TcbLayout) -> Option<TcbVersion> {
        match (layout, bytes) {
            (TcbLayout::Milan, [boot_loader, tee, 0, 0, 0, 0, snp, microcode]) => {
                Some(TcbVersion { layout, fmc: 0, boot_loader, tee, snp, microcode })
            }
            (TcbLayout::Turin, [fmc, boot_loader, tee, snp, 0, 0, 0, microcode]) => {
                Some(TcbVersion { layout, fmc, boot_loader, tee, snp, microcode })
            }
            _ => None,
        }
    }

    /// Whether no part of it is newer than that of `other`.
    pub(super) fn within(self, other: TcbVersion) -> bool {
        self.bytes().iter().zip(other.bytes()).all(|(&own, others)| own <= others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// arch/x86/kvm/svm/sev.c reads byte 6, on Turin byte 3.
    #[test]
    fn the_number_of_snp_is_where_linux_looks() {
        for (layout, index, number) in [(TcbLayout::Milan, 6, 0x17), (TcbLayout::Turin, 3, 3)] {
            let current = TcbVersion::current(layout);
            assert_eq!(current.bytes()[index], number);
            assert_eq!(TcbVersion::decode(current.bytes(), layout), Some(current));
            assert_eq!(TcbVersion::decode([0xFF; 8], layout), None);
        }
    }
}
