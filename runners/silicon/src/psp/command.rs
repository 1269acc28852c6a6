//! The commands by number.

macro_rules! commands {
    ($($variant:ident = $id:literal,)*) => {
        /// A command that the firmware knows by name (include/linux/psp-sev.h: enum sev_cmd).
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u16)]
        #[expect(missing_docs, reason = "the names are those of the specifications")]
        pub enum Command {
            $($variant = $id,)*
        }

        impl Command {
            /// All of them.
            pub const ALL: &'static [Command] = &[$(Command::$variant),*];

            /// The command of this number.
            #[must_use]
            pub fn numbered(id: u16) -> Option<Command> {
                match id { $($id => Some(Command::$variant),)* _ => None }
            }
        }
    };
}

commands! {
    Init = 0x001,
    Shutdown = 0x002,
    FactoryReset = 0x003,
    PlatformStatus = 0x004,
    PekGen = 0x005,
    PekCsr = 0x006,
    PekCertImport = 0x007,
    PdhCertExport = 0x008,
    PdhGen = 0x009,
    DfFlush = 0x00A,
    DownloadFirmware = 0x00B,
    GetId = 0x00C,
    InitEx = 0x00D,
    Decommission = 0x020,
    Activate = 0x021,
    Deactivate = 0x022,
    GuestStatus = 0x023,
    LaunchStart = 0x030,
    LaunchUpdateData = 0x031,
    LaunchUpdateVmsa = 0x032,
    LaunchMeasure = 0x033,
    LaunchSecret = 0x034,
    LaunchFinish = 0x035,
    AttestationReport = 0x036,
    SendStart = 0x040,
    SendUpdateData = 0x041,
    SendUpdateVmsa = 0x042,
    SendFinish = 0x043,
    SendCancel = 0x044,
    ReceiveStart = 0x050,
    ReceiveUpdateData = 0x051,
    ReceiveUpdateVmsa = 0x052,
    ReceiveFinish = 0x053,
    DbgDecrypt = 0x060,
    DbgEncrypt = 0x061,
    SnpInit = 0x081,
    SnpShutdown = 0x082,
    SnpPlatformStatus = 0x083,
    SnpDfFlush = 0x084,
    SnpInitEx = 0x085,
    SnpShutdownEx = 0x086,
    SnpDecommission = 0x090,
    SnpActivate = 0x091,
    SnpGuestStatus = 0x092,
    SnpGctxCreate = 0x093,
    SnpGuestRequest = 0x094,
    SnpActivateEx = 0x095,
    SnpLaunchStart = 0x0A0,
    SnpLaunchUpdate = 0x0A1,
    SnpLaunchFinish = 0x0A2,
    SnpDbgDecrypt = 0x0B0,
    SnpDbgEncrypt = 0x0B1,
    SnpPageReclaim = 0x0C7,
    SnpConfig = 0x0C9,
    SnpDownloadFirmwareEx = 0x0CA,
    SnpCommit = 0x0CB,
    SnpVlekLoad = 0x0CD,
    SnpFeatureInfo = 0x0CE,
}

impl Command {
    /// One of SEV's own, from before SNP: its buffers go by other rules.
    #[must_use]
    pub fn is_legacy(self) -> bool {
        (self as u16) < 0x80
    }
}
