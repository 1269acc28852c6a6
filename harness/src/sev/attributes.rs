//! What the host says of encrypted VMs before there is one (`KVM_GET_DEVICE_ATTR` of `/dev/kvm`, svm/sev.c:
//! sev_dev_get_attr).

use nix::errno::Errno;

use crate::host::Host;
use crate::raw;

/// `KVM_X86_GRP_SEV`.
const GROUP: u32 = 1;

/// `KVM_X86_SEV_VMSA_FEATURES`: the features that `INIT2` may ask for.
///
/// # Errors
/// ENXIO where KVM has no such attribute.
pub fn vmsa_features(host: &Host) -> Result<u64, Errno> {
    raw::system_attribute(host.kvm(), GROUP, 0)
}

/// `KVM_X86_SNP_POLICY_BITS`: the bits that the policy of an SNP guest may have; newer than Linux 6.12.
///
/// # Errors
/// ENXIO where KVM has no such attribute.
pub fn snp_policy_bits(host: &Host) -> Result<u64, Errno> {
    raw::system_attribute(host.kvm(), GROUP, 1)
}

/// `KVM_X86_SEV_SNP_REQ_CERTS`: 1 if SNP guests' requests for certificates can be led to userspace.
///
/// # Errors
/// ENXIO where KVM has no such attribute.
pub fn snp_req_certs(host: &Host) -> Result<u64, Errno> {
    raw::system_attribute(host.kvm(), GROUP, 2)
}

/// Any attribute of the group.
///
/// # Errors
/// The error number of the ioctl.
pub fn any(host: &Host, attribute: u64) -> Result<u64, Errno> {
    of_group(host, GROUP, attribute)
}

/// An attribute of any group, of which this is the first.
///
/// # Errors
/// The error number of the ioctl.
pub fn of_group(host: &Host, group: u32, attribute: u64) -> Result<u64, Errno> {
    raw::system_attribute(host.kvm(), group, attribute)
}
