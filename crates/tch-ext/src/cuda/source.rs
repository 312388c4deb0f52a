//! A text with kernels, and what was made of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use super::compile::{compile, whole};
use super::launch::{Arg, Module, device};

/// Kernels in CUDA C++: functions declared by `KERNEL name(...)`, whose parameters are pointers, `i64` and `double`. They
/// see what `prelude.cuh` declares: the element type `T`, `W` that it is computed in, `Pack`s of `VEC` elements.
#[derive(Debug)]
pub struct Source {
    name: &'static str,
    text: &'static str,
    made: Mutex<BTreeMap<Key, Result<Module, String>>>,
}

/// Device, dtype, and elements that move together.
type Key = (i32, i32, usize);

/// A [`Source`] from its name and text, for a static. Who writes it promises what a compiler cannot see: that the kernels
/// keep within the arguments that they are launched with.
#[macro_export]
macro_rules! cuda_source {
    ($name:expr, $text:expr) => {
        match ($name, $text) {
            // SAFETY: see above.
            (name, text) => unsafe { $crate::cuda::Source::new(name, text) },
        }
    };
}

/// Kernels that can run on the device of a tensor.
#[derive(Debug)]
pub struct Ready {
    how: How,
    vec: usize,
}

#[derive(Debug)]
enum How {
    Device(Module),
    #[cfg(feature = "testkit")]
    Emulated(super::emulate::Program),
}

impl Source {
    /// Nothing is compiled yet; [`crate::cuda_source!`] calls this.
    ///
    /// # Safety
    /// The kernels keep within the arguments that they are launched with.
    pub const unsafe fn new(name: &'static str, text: &'static str) -> Self {
        Self { name, text, made: Mutex::new(BTreeMap::new()) }
    }

    /// The kernels for these tensors, of which the first tells device and dtype, with rows of `width` elements; `None`
    /// where they cannot run: on another device than CUDA's, for another dtype than bf16, f32 and f64, or without
    /// NVRTC.
    pub fn on(&self, tensors: &[&Tensor], width: usize) -> Option<Ready> {
        let like = tensors.first()?;
        let kind = like.kind();
        let most = match kind {
            Kind::BFloat16 => 8,
            Kind::Float => 4,
            Kind::Double => 2,
            _ => return None,
        };
        let aligned = || tensors.iter().all(|t| (t.data_ptr() as usize).is_multiple_of(16));
        let vec = |most: usize| if width.is_multiple_of(most) && aligned() { most } else { 1 };
        match like.device() {
            Device::Cuda(index) => {
                let vec = vec(most);
                let module = self.module(index as i32, kind, vec).ok()?;
                Some(Ready { how: How::Device(module), vec })
            }
            #[cfg(feature = "testkit")]
            Device::Cpu if super::emulate::active() => {
                let vec = vec(most);
                let program = super::emulate::Program::of(self.name, self.text, kind, vec);
                Some(Ready { how: How::Emulated(program), vec })
            }
            _ => None,
        }
    }

    /// The code for an architecture (`sm_90`), for elements of `kind`, `vec` at a time. Needs no GPU.
    ///
    /// # Errors
    /// What the compiler says; that there is none.
    pub fn compile(&self, kind: Kind, vec: usize, arch: &str) -> Result<Vec<u8>, String> {
        compile(self.name, &whole(self.text, kind, vec)?, arch)
    }

    /// Why [`Source::on`] gives nothing on a device.
    ///
    /// # Errors
    /// The reason.
    pub fn check(&self, index: usize) -> Result<(), String> {
        self.module(index as i32, Kind::BFloat16, 8).map(|_| ())
    }

    fn module(&self, index: i32, kind: Kind, vec: usize) -> Result<Module, String> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let (context, arch) = device(index)?;
            Module::load(&self.compile(kind, vec, &arch)?, context, index)
        };
        made.entry((index, kind as i32, vec)).or_insert_with(make).clone()
    }
}

impl Ready {
    /// Elements that move together: rows are multiples of it.
    pub fn vec(&self) -> usize {
        self.vec
    }

    /// Runs `kernel` in `blocks` of `threads` (a multiple of 32), after what torch was told before.
    ///
    /// # Panics
    /// Where an argument is not what it is said to be, or the driver refuses, as tch's operators do.
    pub fn run(&self, kernel: &str, blocks: usize, threads: usize, args: &[Arg<'_>]) {
        assert!(threads.is_multiple_of(32) && (32..=1024).contains(&threads), "{threads} threads");
        if blocks == 0 {
            return;
        }
        #[cfg(feature = "testkit")]
        super::emulate::count();
        let bits: Vec<u64> = args.iter().map(|arg| arg.bits(self.vec)).collect();
        let done = match &self.how {
            How::Device(module) => module.launch(kernel, (blocks, threads), &bits),
            #[cfg(feature = "testkit")]
            How::Emulated(program) => program.run(kernel, blocks, threads, &bits),
        };
        if let Err(why) = done {
            panic!("{why}");
        }
    }
}
