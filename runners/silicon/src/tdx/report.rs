//! TDREPORT: what a TD is, for others on this machine (TDX module ABI, "TDREPORT_STRUCT").
//!
//! Its MAC is HMAC-SHA256 over the first 224 bytes with a key of this machine's, which is what processors do as far as it
//! is published. Nothing here makes a quote of it.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha384};
use zerocopy::little_endian::U64;
use zerocopy::{Immutable, IntoBytes};

use super::measurement::Digest384;
use super::td::Control;

/// Type of a TD's report.
const TYPE_TD: u8 = 0x81;

/// TDINFO_STRUCT.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct TdInfo {
    attributes: U64,
    xfam: U64,
    mrtd: Digest384,
    mrconfigid: Digest384,
    mrowner: Digest384,
    mrownerconfig: Digest384,
    rtmrs: [Digest384; 4],
    servtd_hash: Digest384,
    reserved: [u8; 64],
}

/// TDREPORT_STRUCT: REPORTMACSTRUCT, TEE_TCB_INFO and TDINFO_STRUCT.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct TdReport {
    kind: [u8; 4],
    reserved: [u8; 12],
    cpusvn: [u8; 16],
    tee_tcb_info_hash: Digest384,
    tee_info_hash: Digest384,
    report_data: [u8; 64],
    reserved_2: [u8; 32],
    mac: [u8; 32],
    tee_tcb_info: [u8; 239],
    reserved_3: [u8; 17],
    td_info: TdInfo,
}

/// Bytes of a report.
pub(super) const REPORT: usize = size_of::<TdReport>();
/// Bytes of it that the MAC is over.
const MACED: usize = 224;

/// A report of a TD about itself.
pub(super) fn report(control: &Control, report_data: [u8; 64], seed: &[u8; 32]) -> Vec<u8> {
    let td_info = TdInfo {
        attributes: U64::new(control.attributes),
        xfam: U64::new(control.xfam),
        mrtd: control.mrtd.value(),
        mrconfigid: control.mrconfigid,
        mrowner: control.mrowner,
        mrownerconfig: control.mrownerconfig,
        rtmrs: *control.rtmrs.values(),
        servtd_hash: [0; 48],
        reserved: [0; 64],
    };
    // Nothing is said of the module and its signer but that the information is valid.
    let mut tee_tcb_info = [0; 239];
    tee_tcb_info[..8].copy_from_slice(&0x301FF_u64.to_le_bytes());
    let mut report = TdReport {
        kind: [TYPE_TD, 0, 0, 0],
        reserved: [0; 12],
        cpusvn: [0; 16],
        tee_tcb_info_hash: Sha384::digest(tee_tcb_info).into(),
        tee_info_hash: Sha384::digest(td_info.as_bytes()).into(),
        report_data,
        reserved_2: [0; 32],
        mac: [0; 32],
        tee_tcb_info,
        reserved_3: [0; 17],
        td_info,
    };
    let key = Sha256::new().chain_update(b"TDREPORT").chain_update(seed).finalize();
    if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&key) {
        mac.update(&report.as_bytes()[..MACED]);
        report.mac = mac.finalize().into_bytes().into();
    }
    report.as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tdx::test_machine::{TDR, TestMachine};

    /// tools/testing/selftests/tdx/tdx_guest_test.c: struct tdreport.
    #[test]
    fn a_report_is_laid_out_as_linux_reads_it() {
        let machine = TestMachine::runnable();
        let control = machine.tdx.tds[&TDR].control.as_ref().unwrap();
        let report = report(control, [0x5A; 64], &[1; 32]);
        assert_eq!(report.len(), 1024);
        assert_eq!(report[0], 0x81);
        assert_eq!(report[80..128], *Sha384::digest(&report[512..]));
        assert_eq!(report[128..192], [0x5A; 64]);
        assert_eq!(report[512..520], (1_u64 << 28).to_le_bytes());
        assert_eq!(report[520..528], 7_u64.to_le_bytes());
        assert_eq!(report[528..576], control.mrtd.value());
        assert_ne!(control.mrtd.value(), [0; 48]);
        assert_eq!((report[576], report[624], report[672]), (0xC1, 0xC2, 0xC3));
        assert_eq!(report[720..912], [0; 192]);
    }

    #[test]
    fn the_mac_depends_on_the_machine_and_on_the_data() {
        let machine = TestMachine::runnable();
        let control = machine.tdx.tds[&TDR].control.as_ref().unwrap();
        let mac = |data: u8, seed: u8| report(control, [data; 64], &[seed; 32])[224..256].to_vec();
        assert_eq!(mac(1, 1), mac(1, 1));
        assert_ne!(mac(1, 1), mac(2, 1));
        assert_ne!(mac(1, 1), mac(1, 2));
    }
}
