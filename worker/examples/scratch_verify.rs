use synfire::kernel::cpu::CpuKernels; use synfire::kernel::reference::ReferenceKernels; use synfire::kernel::Kernels;
use synfire::trace::{common::CommonTrace, algorithm::AlgorithmTrace}; use synfire::trace::replay::replay;
fn main(){ let dir=std::env::args().nth(1).unwrap();
 for net in ["mlp","vgg","ms","sew"] { let c=CommonTrace::read(format!("{dir}/{net}.common.safetensors").as_ref()).unwrap();
  for a in ["stol_k2_saved","stol_k3_saved","stol_k4_saved","stol_k2_saved_soft","bptt","bptt_detach_reset"] {
   let t=AlgorithmTrace::read(format!("{dir}/{net}.{a}.safetensors").as_ref(),&c).unwrap();
   let mut k:Box<dyn Kernels>= if std::env::args().nth(2).is_some() {Box::new(ReferenceKernels::new())} else {Box::new(CpuKernels::new(2,None).unwrap())};
   let r=replay(&c,&t,&mut *k).unwrap(); println!("{net} {a} {}", r.passed()); println!("{r}"); } } }
