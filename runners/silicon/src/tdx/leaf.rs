//! The leaf functions by number: what SEAMCALL and TDCALL find in RAX.

macro_rules! leaves {
    ($name:ident, $what:literal, $($variant:ident = $number:literal, $text:literal;)*) => {
        #[doc = $what]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[repr(u16)]
        #[expect(missing_docs, reason = "the names are those of the specification")]
        pub enum $name {
            $($variant = $number,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// Its name in the ABI.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }

            /// The leaf of this number.
            #[must_use]
            pub fn numbered(number: u16) -> Option<$name> {
                $name::ALL.iter().copied().find(|&leaf| leaf as u16 == number)
            }

            /// The leaf of this name.
            #[must_use]
            pub fn named(name: &str) -> Option<$name> {
                $name::ALL.iter().copied().find(|leaf| leaf.name() == name)
            }
        }
    };
}

leaves! {
    HostLeaf, "A leaf of SEAMCALL that the module has (TDX module ABI, \"SEAMCALL Instruction Leaves\").",
    VpEnter = 0, "TDH.VP.ENTER";
    MngAddcx = 1, "TDH.MNG.ADDCX";
    MemPageAdd = 2, "TDH.MEM.PAGE.ADD";
    MemSeptAdd = 3, "TDH.MEM.SEPT.ADD";
    VpAddcx = 4, "TDH.VP.ADDCX";
    MemPageAug = 6, "TDH.MEM.PAGE.AUG";
    MemRangeBlock = 7, "TDH.MEM.RANGE.BLOCK";
    MngKeyConfig = 8, "TDH.MNG.KEY.CONFIG";
    MngCreate = 9, "TDH.MNG.CREATE";
    VpCreate = 10, "TDH.VP.CREATE";
    MngRd = 11, "TDH.MNG.RD";
    MrExtend = 16, "TDH.MR.EXTEND";
    MrFinalize = 17, "TDH.MR.FINALIZE";
    VpFlush = 18, "TDH.VP.FLUSH";
    MngVpflushdone = 19, "TDH.MNG.VPFLUSHDONE";
    MngKeyFreeid = 20, "TDH.MNG.KEY.FREEID";
    MngInit = 21, "TDH.MNG.INIT";
    VpInit = 22, "TDH.VP.INIT";
    PhymemPageRdmd = 24, "TDH.PHYMEM.PAGE.RDMD";
    VpRd = 26, "TDH.VP.RD";
    PhymemPageReclaim = 28, "TDH.PHYMEM.PAGE.RECLAIM";
    MemPageRemove = 29, "TDH.MEM.PAGE.REMOVE";
    MemSeptRemove = 30, "TDH.MEM.SEPT.REMOVE";
    SysKeyConfig = 31, "TDH.SYS.KEY.CONFIG";
    SysInit = 33, "TDH.SYS.INIT";
    SysRd = 34, "TDH.SYS.RD";
    SysLpInit = 35, "TDH.SYS.LP.INIT";
    SysTdmrInit = 36, "TDH.SYS.TDMR.INIT";
    MemTrack = 38, "TDH.MEM.TRACK";
    MemRangeUnblock = 39, "TDH.MEM.RANGE.UNBLOCK";
    PhymemCacheWb = 40, "TDH.PHYMEM.CACHE.WB";
    PhymemPageWbinvd = 41, "TDH.PHYMEM.PAGE.WBINVD";
    VpWr = 43, "TDH.VP.WR";
    SysConfig = 45, "TDH.SYS.CONFIG";
    SysDisable = 69, "TDH.SYS.DISABLE";
}

impl HostLeaf {
    /// The highest version of the leaf that the module has.
    #[must_use]
    pub fn newest_version(self) -> u8 {
        match self {
            HostLeaf::VpInit => 1,
            _ => 0,
        }
    }
}

leaves! {
    GuestLeaf, "A leaf of TDCALL that the module has (TDX module ABI, \"TDCALL Instruction Leaves\").",
    VpVmcall = 0, "TDG.VP.VMCALL";
    VpInfo = 1, "TDG.VP.INFO";
    MrRtmrExtend = 2, "TDG.MR.RTMR.EXTEND";
    VpVeinfoGet = 3, "TDG.VP.VEINFO.GET";
    MrReport = 4, "TDG.MR.REPORT";
    MemPageAccept = 6, "TDG.MEM.PAGE.ACCEPT";
    VmRd = 7, "TDG.VM.RD";
    VmWr = 8, "TDG.VM.WR";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_are_found_by_number_and_name() {
        assert_eq!(HostLeaf::numbered(45), Some(HostLeaf::SysConfig));
        assert_eq!(HostLeaf::numbered(52), None, "runtime update is not offered");
        assert_eq!(GuestLeaf::numbered(6), Some(GuestLeaf::MemPageAccept));
        for &leaf in HostLeaf::ALL {
            assert_eq!(HostLeaf::named(leaf.name()), Some(leaf));
        }
    }
}
