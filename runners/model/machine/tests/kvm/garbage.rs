//! Whatever a program passes: an error number, never a panic, and no descriptor left behind.

use std::os::fd::RawFd;

use proptest::prelude::*;

use crate::driver::{CREATE_GUEST_MEMFD, CREATE_VCPU, CREATE_VM, Fd, GET_STATS_FD, Memory, PAGE, RUN, SW_PROTECTED};

/// Every request that the model knows, and some that it does not.
const REQUESTS: &[u64] = &[
    0xae00,
    CREATE_VM,
    0xae03,
    0xae04,
    0xc008_ae05,
    0xc008_ae09,
    0xc004_ae02,
    0xc004_ae0a,
    0xc008_ae88,
    0x8008_ae9d,
    0x4018_aee2,
    0x4018_aee3,
    CREATE_VCPU,
    0x4020_ae46,
    0x40a0_ae49,
    0x4020_aed2,
    CREATE_GUEST_MEMFD,
    0x4068_aea3,
    GET_STATS_FD,
    0x4010_ae42,
    0xc018_aec0,
    0xae47,
    0x4008_ae48,
    0xae44,
    0xae60,
    0x4040_ae77,
    0xae64,
    0x4008_ae6a,
    0xae78,
    0xaea2,
    0xaea3,
    0x8030_ae7c,
    0x4030_ae7b,
    RUN,
    0x8090_ae81,
    0x4090_ae82,
    0x8138_ae83,
    0x4138_ae84,
    0x8140_aecc,
    0x4140_aecd,
    0xc018_ae85,
    0x4004_ae86,
    0xae9a,
    0x4008_ae89,
    0x4004_ae8b,
    0x81a0_ae8c,
    0x41a0_ae8d,
    0x8400_ae8e,
    0x4400_ae8f,
    0x4008_ae90,
    0xc008_ae91,
    0x8004_ae98,
    0x4004_ae99,
    0x4048_ae9b,
    0x8040_ae9f,
    0x4040_aea0,
    0x8080_aea1,
    0x4080_aea2,
    0x9000_aea4,
    0x9000_aecf,
    0x5000_aea5,
    0x8188_aea6,
    0x4188_aea7,
    0x4010_aeab,
    0x4010_aeac,
    0xc040_aed5,
    0xc008_aeba,
    0x5401,
    u64::MAX,
];

#[derive(Clone, Debug)]
enum Argument {
    Number(u64),
    /// A pointer to these bytes, followed by more.
    Bytes(Vec<u8>),
    /// A pointer to the last bytes before an unmapped page.
    AtTheEnd(Vec<u8>),
}

/// Bytes that get past the first checks more often than noise: small numbers in words.
fn structure() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just(0u64),
        Just(1),
        Just(PAGE),
        Just(u64::MAX),
        Just(1 << 63),
        (0..64u64).prop_map(|n| n * PAGE),
        0..40u64,
        any::<u64>()
    ];
    proptest::collection::vec(word, 0..48).prop_map(|words| words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

fn argument() -> impl Strategy<Value = Argument> {
    prop_oneof![
        prop_oneof![0..10u64, any::<u64>(), Just(1 << 47), Just(u64::MAX)].prop_map(Argument::Number),
        structure().prop_map(Argument::Bytes),
        structure().prop_map(Argument::AtTheEnd),
    ]
}

fn open_descriptors() -> Vec<RawFd> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let mut open: Vec<RawFd> =
        entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).filter(|fd| *fd > 2).collect();
    open.sort_unstable();
    open
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_sequence_of_ioctls_panics(steps in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), argument()), 1..40)) {
        let arena = Memory::new(8 * PAGE);
        // Half of the arena ends where nothing is mapped.
        let end = arena.start as u64 + 4 * PAGE;
        protect(end);
        let mut objects = vec![Fd::kvm(), Fd::vm(0), Fd::vm(SW_PROTECTED)];
        let vcpu = objects[1].make(CREATE_VCPU, 0).unwrap();
        let run = Memory::of(&vcpu, 3 * PAGE);
        run.write(1, &[1]);
        objects.push(vcpu);
        objects.push(objects[2].guest_memfd(4 * PAGE, 0).unwrap());
        for (object, request, argument) in steps {
            let object = object.get(&objects);
            let request = *request.get(REQUESTS);
            let address = match &argument {
                Argument::Number(number) => *number,
                Argument::Bytes(bytes) => {
                    arena.write(0, bytes);
                    arena.start as u64
                }
                Argument::AtTheEnd(bytes) => {
                    arena.write(4 * PAGE as usize - bytes.len(), bytes);
                    end - bytes.len() as u64
                }
            };
            // Only vCPUs that end at once are run.
            if request == RUN && object.0 != objects[3].0 {
                continue;
            }
            let result = object.ioctl(request, address);
            if let (CREATE_VM | CREATE_VCPU | CREATE_GUEST_MEMFD | GET_STATS_FD, Ok(fd)) = (request, result) {
                objects.push(Fd(fd));
            }
            run.write(1, &[1]);
        }
        drop((objects, run));
        // Other tests of this process come and go; what this one made is closed.
        prop_assert!(open_descriptors().len() < 200);
    }
}

#[expect(unsafe_code, reason = "mprotect of memory of ours")]
fn protect(address: u64) {
    // SAFETY: the upper half of the arena, which nobody has touched.
    let result = unsafe { libc::mprotect(address as *mut libc::c_void, 4 * PAGE as usize, libc::PROT_NONE) };
    assert_eq!(result, 0);
}
