//! The operations that the host sends.

use core::fmt;

use crate::argument::{Argument, Reader, Writer};
use crate::decode::{DecodeError, Field};
use crate::layout::ARG_COUNT;
use crate::parameter::{Convert, Length, Width};
use crate::pattern::Pattern;

/// Makes the operations of their table: the type with its documentation, what is written into a mailbox and read from
/// it, the names for people, and the text that the version of the protocol is a hash of.
macro_rules! operations {
    ($($(#[$doc:meta])* $code:literal => $name:ident $({ $($(#[$about:meta])* $field:ident: $type:ty,)* })?;)*) => {
        /// One operation of the general payload. Addresses are GVAs; a fault in an access that an operation makes on
        /// behalf of the host is a result ([`Reply::Fault`](crate::Reply::Fault)), not a failure.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Op {
            $($(#[$doc])* $name $({ $($(#[$about])* $field: $type,)* })?,)*
        }

        // The arguments of each fit, or this does not compile.
        $(const _: usize = ARG_COUNT - (0 $($(+ <$type as Argument>::WORDS)*)?);)*

        /// The table as text.
        pub(crate) const TABLE: &str = concat!($(stringify!($code $name $({ $($field: $type),* })?), ";"),*);

        impl Op {
            /// The code, and the arguments.
            fn write(self) -> (u64, Writer) {
                let mut words = Writer::default();
                let code = match self {
                    $(Op::$name $({ $($field),* })? => {
                        $($($field.write(&mut words);)*)?
                        $code
                    })*
                };
                (code, words)
            }

            /// The operation of a code and its arguments.
            ///
            /// # Errors
            /// The field that makes no sense.
            pub fn decode(code: u64, args: [u64; ARG_COUNT]) -> Result<Self, DecodeError> {
                let mut words = Reader::new(args);
                match code {
                    $($code => Ok(Op::$name $({ $($field: Argument::read(&mut words)?),* })?),)*
                    _ => Err(DecodeError::new(Field::Op, code)),
                }
            }

            /// The name.
            const fn name(self) -> &'static str {
                match self {
                    $(Op::$name $({ $($field: _),* })? => stringify!($name),)*
                }
            }
        }
    };
}

operations! {
    /// Nothing: the guest just answers.
    1 => Nop;
    /// One load. Values: the value, zero-extended.
    2 => Read {
        /// Address, of any alignment.
        gva: u64,
        /// Width.
        width: Width,
    };
    /// One store.
    3 => Write {
        /// Address, of any alignment.
        gva: u64,
        /// Width.
        width: Width,
        /// Value, of which the low bytes are stored.
        value: u64,
    };
    /// Loads `len` bytes, one by one, into the text of the reply.
    4 => ReadBytes {
        /// Address.
        gva: u64,
        /// How many.
        len: Length,
    };
    /// Stores the first `len` bytes of the request's text, one by one.
    5 => WriteBytes {
        /// Address.
        gva: u64,
        /// How many.
        len: Length,
    };
    /// Fills whole pages: every 8-byte word of page `i` becomes `pattern.word(first + i)`.
    6 => Fill {
        /// Address, page-aligned.
        gva: u64,
        /// Pages.
        pages: u64,
        /// Pattern.
        pattern: Pattern,
        /// Index of the first page in the pattern.
        first: u64,
    };
    /// Compares whole pages with what [`Op::Fill`] would have written. Values: words that differ; if any,
    /// the address of the first, what it should have been and what it was.
    7 => Check {
        /// Address, page-aligned.
        gva: u64,
        /// Pages.
        pages: u64,
        /// Pattern.
        pattern: Pattern,
        /// Index of the first page in the pattern.
        first: u64,
    };
    /// `lock cmpxchg` of 8 bytes. Values: what was there before.
    8 => CompareExchange {
        /// Address.
        gva: u64,
        /// Stored only if this was there.
        expected: u64,
        /// The new value.
        new: u64,
    };
    /// Calls a function `extern "C" fn(u64) -> u64` at an address. Values: what it returned.
    9 => Execute {
        /// Address of the code.
        gva: u64,
        /// Its argument (RDI).
        argument: u64,
    };
    /// The hypercall KVM_HC_MAP_GPA_RANGE and nothing else. Values: RAX afterwards.
    10 => MapGpaRange {
        /// RBX: the first byte.
        gpa: u64,
        /// RCX: 4 KiB pages.
        pages: u64,
        /// RDX: size hint and encrypted bit, as the row wants them.
        attributes: u64,
    };
    /// An arbitrary hypercall with RAX, RBX, RCX, RDX, RSI. Values: RAX afterwards.
    11 => Hypercall {
        /// RAX, RBX, RCX, RDX, RSI.
        registers: [u64; 5],
    };
    /// A conversion as guest kernels do it. Values: the answer, which is RAX of the hypercall or SW_EXITINFO2 of the page
    /// state change; pages whose page-table entry is present afterwards; pages that PVALIDATE found as they should become.
    12 => Convert {
        /// All about it.
        request: Convert,
    };
    /// Sets or clears PRESENT in the 4 KiB page-table entries of a range and flushes the TLBs, as
    /// in a conversion.
    13 => SetPresent {
        /// Address, page-aligned.
        gva: u64,
        /// Pages.
        pages: u64,
        /// Set or clear.
        present: bool,
    };
    /// CPUID. Values: EAX, EBX, ECX, EDX.
    14 => Cpuid {
        /// EAX.
        leaf: u32,
        /// ECX.
        subleaf: u32,
    };
    /// RDMSR. Values: the value.
    15 => ReadMsr {
        /// ECX.
        msr: u32,
    };
    /// WRMSR.
    16 => WriteMsr {
        /// ECX.
        msr: u32,
        /// EDX:EAX.
        value: u64,
    };
    /// An 8-byte load as by Linux's `load_unaligned_zeropad()`: on #PF in the second page the missing bytes
    /// read as zero. Values: the value; the vector of the fault, or [`Op::NO_FAULT`]; its error code; CR2.
    17 => LoadZeropad {
        /// Address.
        gva: u64,
    };
    /// [`Op::LoadZeropad`] until told to stop or `limit` times. Each value must be one of `allowed`. Values:
    /// loads; loads that were padded; faults other than #PF; values that were not allowed and the last such.
    18 => HammerZeropad {
        /// Address.
        gva: u64,
        /// At most so many loads; 0: no limit but the stop.
        limit: u64,
        /// The values that a load may give.
        allowed: [u64; 3],
    };
    /// `lock xadd 1` to the first word of every page, round after round, until told to stop or `limit`
    /// rounds. Values: rounds done.
    19 => HammerAdd {
        /// Address, page-aligned.
        gva: u64,
        /// Pages.
        pages: u64,
        /// At most so many rounds; 0: no limit but the stop.
        limit: u64,
    };
    /// Panics in the guest with a message that has [`Op::PANIC_ARGUMENT_PREFIX`] and this number in it.
    20 => Panic {
        /// The number.
        argument: u64,
    };
    /// Fails an assertion in the guest: `left == right`.
    21 => AssertEqual {
        /// Left side.
        left: u64,
        /// Right side.
        right: u64,
    };
    /// Raises #UD outside every probe: an exception that nobody expects.
    22 => Crash;
    /// Reads the 4 KiB page-table entry that maps an address. Values: the entry.
    23 => ReadEntry {
        /// Address, page-aligned.
        gva: u64,
    };
    /// Writes the 4 KiB page-table entry that maps an address, and flushes the TLBs.
    24 => WriteEntry {
        /// Address, page-aligned.
        gva: u64,
        /// The entry.
        entry: u64,
    };
    /// PVALIDATE of pages of 4 KiB, which stops at the first that it does not succeed for. Values: its EAX, or 0; pages
    /// done; those of them that were in that state already (CF).
    25 => Validate {
        /// Address of a private mapping, page-aligned.
        gva: u64,
        /// Pages.
        pages: u64,
        /// Validate, or rescind.
        validated: bool,
    };
    /// RMPADJUST of a page of 4 KiB. Values: EAX.
    26 => AdjustRmp {
        /// Address of a private mapping, page-aligned.
        gva: u64,
        /// RDX: bits 7:0 the VMPL, 15:8 its permissions, 16 whether the page is a VMSA.
        attributes: u64,
    };
    /// VMGEXIT with this in the GHCB MSR. Values: the MSR afterwards.
    27 => VmgexitMsr {
        /// What the MSR is set to.
        msr: u64,
    };
    /// VMGEXIT with this in the GHCB MSR and a page of the host's making as this vCPU's GHCB; what is in the GHCB
    /// afterwards replaces that page.
    28 => VmgexitPage {
        /// What the MSR is set to.
        msr: u64,
        /// Address of the page, page-aligned.
        page: u64,
    };
    /// How many of its instructions were reflected to this vCPU, as #VC or #VE, and handled. Values: that.
    29 => Reflected;
    /// IN. Values: what was read, zero-extended.
    30 => PortRead {
        /// DX.
        port: u32,
        /// Width, at most 4 bytes.
        width: Width,
    };
    /// OUT.
    31 => PortWrite {
        /// DX.
        port: u32,
        /// Width, at most 4 bytes.
        width: Width,
        /// Value, of which the low bytes are written.
        value: u64,
    };
    /// REP INSB. Values: RCX afterwards.
    32 => PortReadBytes {
        /// DX.
        port: u32,
        /// Where the bytes go.
        gva: u64,
        /// How many.
        count: u64,
    };
    /// REP OUTSB. Values: RCX afterwards.
    33 => PortWriteBytes {
        /// DX.
        port: u32,
        /// Where the bytes are.
        gva: u64,
        /// How many.
        count: u64,
    };
    /// TDCALL. Values: RAX; RCX, RDX, R8, R9, R10 and R11.
    35 => Tdcall {
        /// RAX: the leaf.
        leaf: u64,
        /// RCX, RDX, R8 and R9.
        registers: [u64; 4],
    };
    /// TDG.VP.VMCALL, which shows the host R10 to R15. Values: the same afterwards.
    36 => Tdvmcall {
        /// R10 to R15.
        registers: [u64; 6],
    };
    /// PVALIDATE of a page of 2 MiB. Values: EAX; CF.
    34 => ValidateLarge {
        /// Address of a private mapping.
        gva: u64,
        /// Validate, or rescind.
        validated: bool,
    };
}

impl Op {
    /// In place of a vector: there was no fault.
    pub const NO_FAULT: u64 = u64::MAX;

    /// How the message of [`Op::Panic`] begins.
    pub const PANIC_ARGUMENT_PREFIX: &'static str = "the host asked for a panic with ";

    /// Code and arguments, as they are written into a mailbox.
    pub fn encode(self) -> (u64, [u64; ARG_COUNT]) {
        let (code, Writer { words, .. }) = self.write();
        (code, words)
    }
}

/// The name and the arguments: `Fill 0x100001000 0x1 0xaa 0x0`.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, Writer { words, used }) = self.write();
        f.write_str(self.name())?;
        words[..used].iter().try_for_each(|word| write!(f, " {word:#x}"))
    }
}
