//! A `libcuda.so.1` whose kernels run in moec's PTX emulator, with all its checks: programs that call the CUDA driver run on
//! machines without a GPU. `moec emulate -- PROGRAM` starts one with it; nothing installs it.
//!
//! Every call is done when it returns: streams order nothing that is not already in order, and events are points in the past.
//! What the checks find is told on standard error, and is an error of the launch ([`call::LAUNCH_FAILED`]) and of the next call
//! that waits. A call that is missing gives `CUDA_ERROR_NOT_SUPPORTED` and one line on standard error with its name.
//!
//! * [`call`]: how a call of the driver becomes a Rust function, and error codes.
//! * [`settings`], [`chips`]: what the environment asks for, and which GPUs there are.
//! * [`state`]: everything that handles name.
//! * [`work`]: what goes into a stream or a graph, and doing it.
//! * `api`: the calls, one file a theme; `data/symbols.txt` has the names of all there are.
#![allow(non_snake_case, reason = "the names are the driver's")]
#![allow(clippy::missing_safety_doc, reason = "the contract of each function is the driver's")]
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a library without another place to tell something")]

pub mod api;
mod call;
mod chips;
mod settings;
mod state;
pub mod structs;
mod symbols;
mod work;
