//! NCCL's functions, each looked up by its name when the library is loaded.
//!
//! Types and numbers are those of nccl.h 2.28; `tests/nccl/layout.h` has the same numbers and is held to
//! NVIDIA's own header. Results and operators are plain numbers and no enums: a newer NCCL has more
//! results, and operators that are made have numbers of their own.
#![allow(
    unsafe_code,
    reason = "functions of C, in a library that is loaded at run time"
)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::{offset_of, size_of};
use std::path::PathBuf;
use std::ptr;

use crate::libraries::{self, Library, OpenError, Opened};

/// A communicator, NCCL's own.
pub(super) type Handle = *mut c_void;

/// A stream of CUDA.
pub(super) type Stream = *mut c_void;

pub(super) const SUCCESS: c_int = 0;
pub(super) const SYSTEM_ERROR: c_int = 2;
pub(super) const INTERNAL_ERROR: c_int = 3;
pub(super) const REMOTE_ERROR: c_int = 6;
pub(super) const IN_PROGRESS: c_int = 7;

pub(super) const SUM: c_int = 0;
pub(super) const AVERAGE: c_int = 4;

pub(super) const FLOAT32: c_int = 7;
pub(super) const BFLOAT16: c_int = 9;

/// A scalar that is read before the call returns.
pub(super) const HOST_IMMEDIATE: c_int = 1;

/// The oldest NCCL whose communicators take a configuration as it is filled here: 2.18.
const OLDEST: c_int = 21_800;

/// Bytes of an id.
pub(super) const ID_BYTES: usize = 128;

/// What makes ranks one group.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub(super) [u8; ID_BYTES]);

/// How a communicator is to be. An older NCCL reads as much of it as it knows.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
    traffic_class: c_int,
    comm_name: *const c_char,
    collnet_enable: c_int,
    cta_policy: c_int,
    shrink_share: c_int,
    nvls_ctas: c_int,
    num_channels_per_net_peer: c_int,
    nvlink_centric_sched: c_int,
}

const _: () = {
    assert!(size_of::<UniqueId>() == 128);
    assert!(size_of::<Config>() == 80);
    assert!(offset_of!(Config, magic) == 8);
    assert!(offset_of!(Config, version) == 12);
    assert!(offset_of!(Config, blocking) == 16);
    assert!(offset_of!(Config, max_ctas) == 28);
    assert!(offset_of!(Config, net_name) == 32);
    assert!(offset_of!(Config, split_share) == 40);
    assert!(offset_of!(Config, comm_name) == 48);
    assert!(offset_of!(Config, collnet_enable) == 56);
    assert!(offset_of!(Config, nvlink_centric_sched) == 76);
};

impl Config {
    /// NCCL's own defaults, but that no call waits: `NCCL_CONFIG_INITIALIZER` of 2.28.9 with
    /// `blocking = 0`.
    pub(super) fn without_waiting() -> Self {
        const UNDEFINED: c_int = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 22_809,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: ptr::null(),
            split_share: UNDEFINED,
            traffic_class: UNDEFINED,
            comm_name: ptr::null(),
            collnet_enable: UNDEFINED,
            cta_policy: UNDEFINED,
            shrink_share: UNDEFINED,
            nvls_ctas: UNDEFINED,
            num_channels_per_net_peer: UNDEFINED,
            nvlink_centric_sched: UNDEFINED,
        }
    }
}

type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
type GetUniqueId = unsafe extern "C" fn(*mut UniqueId) -> c_int;
type InitRank = unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int, *mut Config) -> c_int;
type OfHandle = unsafe extern "C" fn(Handle) -> c_int;
type AsyncError = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;
type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
type LastError = unsafe extern "C" fn(Handle) -> *const c_char;
type CreateFactor = unsafe extern "C" fn(*mut c_int, *mut c_void, c_int, c_int, Handle) -> c_int;
type DestroyOperator = unsafe extern "C" fn(c_int, Handle) -> c_int;
type AllReduce =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Stream) -> c_int;
type Group = unsafe extern "C" fn() -> c_int;

/// The functions that are called.
pub(super) struct Functions {
    path: PathBuf,
    /// 22809 for 2.28.9.
    version: c_int,
    pub(super) get_unique_id: GetUniqueId,
    pub(super) init_rank: InitRank,
    pub(super) async_error: AsyncError,
    pub(super) finalize: OfHandle,
    pub(super) destroy: OfHandle,
    pub(super) abort: OfHandle,
    pub(super) error_string: ErrorString,
    pub(super) last_error: LastError,
    pub(super) create_factor: CreateFactor,
    pub(super) destroy_operator: DestroyOperator,
    pub(super) all_reduce: AllReduce,
    pub(super) group_start: Group,
    pub(super) group_end: Group,
}

impl Functions {
    /// Loads NCCL, where it is found; see [`libraries::find`]. It stays loaded.
    ///
    /// # Errors
    ///
    /// Where it was looked for, the function that it lacks, or its version if that is too old.
    pub(super) fn load() -> Result<Self, String> {
        let opened = libraries::open(Library::Nccl).map_err(|error| error.to_string())?;
        let functions = Self::of(opened).map_err(|error| error.to_string())?;
        if functions.version < OLDEST {
            return Err(format!(
                "{} is NCCL {}, and {} is the oldest that will do: install a newer one, such as the \
                 Python package nvidia-nccl-cu13",
                functions.path.display(),
                functions.version(),
                written(OLDEST)
            ));
        }
        Ok(functions)
    }

    fn of(opened: &'static Opened) -> Result<Self, OpenError> {
        // SAFETY: the types are those of nccl.h, by the names that it has them under.
        unsafe {
            let get_version: GetVersion = opened.symbol("ncclGetVersion")?;
            let mut version = 0;
            // A failure leaves 0, which is too old.
            let _ = get_version(&raw mut version);
            Ok(Self {
                path: opened.found.path.clone(),
                version,
                get_unique_id: opened.symbol("ncclGetUniqueId")?,
                init_rank: opened.symbol("ncclCommInitRankConfig")?,
                async_error: opened.symbol("ncclCommGetAsyncError")?,
                finalize: opened.symbol("ncclCommFinalize")?,
                destroy: opened.symbol("ncclCommDestroy")?,
                abort: opened.symbol("ncclCommAbort")?,
                error_string: opened.symbol("ncclGetErrorString")?,
                last_error: opened.symbol("ncclGetLastError")?,
                create_factor: opened.symbol("ncclRedOpCreatePreMulSum")?,
                destroy_operator: opened.symbol("ncclRedOpDestroy")?,
                all_reduce: opened.symbol("ncclAllReduce")?,
                group_start: opened.symbol("ncclGroupStart")?,
                group_end: opened.symbol("ncclGroupEnd")?,
            })
        }
    }

    /// "2.28.9".
    pub(super) fn version(&self) -> String {
        written(self.version)
    }

    /// A new id, with a thread of this process that brings together those who have it.
    pub(super) fn unique_id(&self) -> Result<[u8; ID_BYTES], String> {
        let mut id = UniqueId([0; ID_BYTES]);
        // SAFETY: NCCL writes an id, for which there is room.
        let result = unsafe { (self.get_unique_id)(&raw mut id) };
        if result == SUCCESS {
            Ok(id.0)
        } else {
            Err(self.told("ncclGetUniqueId", result, ptr::null_mut()))
        }
    }

    /// What NCCL says of a result, in one line.
    pub(super) fn told(&self, what: &str, result: c_int, handle: Handle) -> String {
        // SAFETY: both give texts that end with 0 and stay; NCCL takes a null communicator here, and any
        // other is alive while the caller holds its lock.
        let (general, last) = unsafe { ((self.error_string)(result), (self.last_error)(handle)) };
        let (general, last) = (text(general), text(last));
        let mut told = format!("{what}: {general}");
        if let Some(line) = last.lines().map(str::trim).find(|line| !line.is_empty()) {
            told = format!("{told} ({line})");
        }
        if !told.contains("NCCL_DEBUG") {
            told.push_str(": set NCCL_DEBUG=WARN for the reason");
        }
        told
    }
}

fn written(version: c_int) -> String {
    format!(
        "{}.{}.{}",
        version / 10_000,
        version / 100 % 100,
        version % 100
    )
}

fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: NCCL's texts end with 0, and nobody changes them here.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}
