//! One rank of a group, with memory on its GPU.

use std::thread;
use std::time::{Duration, Instant};

use synfire::collective::device::Piece;
use synfire::collective::{Collective, CollectiveError, Nccl, Wire, bf16};
use synfire::kernel::cuda::device::{Device, Memory};

use super::job::Seat;
use super::{LONG, SHORT, ranks};

pub(super) struct Member {
    pub(super) group: Box<dyn Collective>,
    device: Device,
    rank: usize,
    world: usize,
}

impl Member {
    pub(super) fn new(seat: &Seat) -> Self {
        let gpu = u32::try_from(seat.rank).unwrap();
        let device = Device::open(gpu).unwrap();
        let mut group: Box<dyn Collective> = Box::new(seat.tcp());
        Nccl::join(&mut group, gpu, LONG).unwrap();
        assert!(group.name().starts_with("nccl 2."), "{}", group.name());
        assert!(group.name().ends_with(" beside tcp"), "{}", group.name());
        Self {
            group,
            device,
            rank: seat.rank,
            world: seat.world,
        }
    }

    fn memory(&self, values: &[f32]) -> Memory {
        let memory = self.device.allocate(4 * values.len() as u64).unwrap();
        self.device.write_values(memory.pointer(), values);
        memory
    }

    fn start(&mut self, pieces: &[Piece]) -> Result<(), CollectiveError> {
        let stream = self.device.stream();
        let device = self.group.on_device().unwrap();
        let started = device.start(stream, pieces)?;
        device.join(stream, started)
    }

    fn check(&mut self) -> Result<(), CollectiveError> {
        self.device.wait();
        self.group.on_device().unwrap().check()
    }

    /// A sum of ones.
    fn ones(&mut self, length: usize) -> Result<(), CollectiveError> {
        let memory = self.memory(&vec![1.0; length]);
        self.start(&[piece(&memory, length, 1.0)])?;
        self.check()?;
        let mut found = vec![0.0; length];
        self.device.read_values(memory.pointer(), &mut found);
        assert_eq!(found, vec![self.world as f32; length]);
        Ok(())
    }

    pub(super) fn sums(&mut self) {
        for (salt, length) in (0..).zip([1, 2, 5, 1000, 4097, 65_537, 200_001, ranks::LARGE]) {
            self.sum_f32(length, salt, false);
            self.sum_f32(length, salt, true);
            self.sum_bf16(length.min(200_001), salt);
        }
        self.ones(3).unwrap();
    }

    /// Of all ranks' numbers by equal shares, or by shares of 1, 2, 3 ...
    fn sum_f32(&mut self, length: usize, salt: u32, by_rank: bool) {
        let (rank, world) = (self.rank, self.world);
        let whole = (world * (world + 1) / 2) as f32;
        let factor = |rank: usize| {
            if by_rank {
                (rank + 1) as f32 / whole
            } else {
                1.0 / world as f32
            }
        };
        let memory = self.memory(&ranks::numbers(rank, length, salt));
        self.start(&[piece(&memory, length, factor(rank))]).unwrap();
        let mut found = vec![0.0; length];
        self.device.read_values(memory.pointer(), &mut found);
        self.check().unwrap();
        let all: Vec<Vec<f32>> = (0..world)
            .map(|r| ranks::numbers(r, length, salt))
            .collect();
        for (i, found) in found.iter().enumerate() {
            let expected: f64 = (0..world)
                .map(|r| f64::from(all[r][i]) * f64::from(factor(r)))
                .sum();
            // Up to four products below 4 in f32.
            assert!(
                (f64::from(*found) - expected).abs() < 2e-6,
                "{i}: {found} {expected}"
            );
        }
        self.agree(&found);
    }

    fn sum_bf16(&mut self, length: usize, salt: u32) {
        let (rank, world) = (self.rank, self.world);
        let given = |rank| -> Vec<u16> {
            let numbers = ranks::numbers(rank, length, salt);
            numbers.into_iter().map(bf16::to_bf16).collect()
        };
        let memory = self.device.allocate(2 * length as u64).unwrap();
        self.device.write_values(memory.pointer(), &given(rank));
        let wire = Wire::Bf16;
        self.start(&[Piece {
            wire,
            ..piece(&memory, length, 1.0)
        }])
        .unwrap();
        let mut found = vec![0_u16; length];
        self.device.read_values(memory.pointer(), &mut found);
        self.check().unwrap();
        let all: Vec<Vec<u16>> = (0..world).map(given).collect();
        for (i, found) in found.iter().enumerate() {
            let terms = all
                .iter()
                .map(|numbers| f64::from(bf16::from_bf16(numbers[i])));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
            // Rounded to 8 bits at each of at most 3 additions.
            let error = (f64::from(bf16::from_bf16(*found)) - sum).abs();
            assert!(error <= 3.0 / 256.0 * size, "{i}: {error} of {size}");
        }
    }

    /// That all ranks have the same bits.
    fn agree(&mut self, values: &[f32]) {
        let bytes: Vec<u8> = values
            .iter()
            .take(10_000)
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let all = self.group.gather(&bytes).unwrap();
        assert!(all.iter().all(|other| *other == bytes));
    }

    /// Buckets start as they are computed and are used in that order, while ranks are early and late:
    /// what is summed is what was computed before, and what is used is the sum.
    pub(super) fn order(&mut self) {
        const LENGTH: usize = 300_000;
        const BUCKETS: usize = 6;
        let bytes = 4 * LENGTH as u64;
        for round in 0..4_usize {
            let value = |rank: usize, bucket: usize| (100 * round + 10 * bucket + rank) as f32;
            let sources: Vec<Memory> = (0..BUCKETS)
                .map(|bucket| self.memory(&vec![value(self.rank, bucket); LENGTH]))
                .collect();
            let zeros = self.memory(&vec![0.0; LENGTH]);
            let buckets: Vec<Memory> = (0..BUCKETS)
                .map(|_| self.memory(&vec![0.0; LENGTH]))
                .collect();
            let used: Vec<Memory> = (0..BUCKETS)
                .map(|_| self.memory(&vec![0.0; LENGTH]))
                .collect();
            self.device.wait();
            if (round + self.rank).is_multiple_of(2) {
                thread::sleep(Duration::from_millis(30));
            }
            let stream = self.device.stream();
            let mut under_way = Vec::new();
            for (source, bucket) in sources.iter().zip(&buckets) {
                // The stream is busy when the sum is called for.
                for _ in 0..20 {
                    self.device.copy(zeros.pointer(), bucket.pointer(), bytes);
                }
                self.device.copy(source.pointer(), bucket.pointer(), bytes);
                let device = self.group.on_device().unwrap();
                under_way.push(device.start(stream, &[piece(bucket, LENGTH, 1.0)]).unwrap());
            }
            for (index, started) in under_way.into_iter().enumerate() {
                self.group
                    .on_device()
                    .unwrap()
                    .join(stream, started)
                    .unwrap();
                self.device
                    .copy(buckets[index].pointer(), used[index].pointer(), bytes);
                // The next round's gradients may overwrite it now.
                self.device
                    .copy(zeros.pointer(), buckets[index].pointer(), bytes);
            }
            for (index, used) in used.iter().enumerate() {
                let expected: f32 = (0..self.world).map(|rank| value(rank, index)).sum();
                let mut found = vec![0.0; LENGTH];
                self.device.read_values(used.pointer(), &mut found);
                assert_eq!(
                    found,
                    vec![expected; LENGTH],
                    "bucket {index} of round {round}"
                );
            }
            self.check().unwrap();
        }
    }

    /// All have come so far: what one of them says from here on harms no sum before.
    fn meet(&mut self) {
        self.group.gather(&[]).unwrap();
    }

    /// Rank 1 does something else than to call.
    pub(super) fn without_rank_1(mut self, other: impl FnOnce(&mut Self)) {
        self.ones(10).unwrap();
        self.meet();
        self.group.set_deadline(SHORT);
        if self.rank == 1 {
            other(&mut self);
            return;
        }
        self.until_the_end_of(1000);
    }

    pub(super) fn until_the_end(mut self) {
        self.ones(5).unwrap();
        self.ones(5).unwrap();
        self.meet();
        self.group.set_deadline(Duration::from_secs(20));
        self.until_the_end_of(7);
    }

    /// Rank 1 has trouble with a sum for which the others come a second later.
    pub(super) fn late(mut self) {
        self.ones(5).unwrap();
        self.meet();
        self.group.set_deadline(Duration::from_secs(3));
        if self.rank != 1 {
            thread::sleep(Duration::from_secs(1));
        }
        self.until_the_end_of(7);
    }

    /// A sum that fails, with others behind it; then the group is over and says so again.
    fn until_the_end_of(mut self, length: usize) {
        let began = Instant::now();
        let memory = self.memory(&vec![1.0; length]);
        let started = (0..3).try_for_each(|_| self.start(&[piece(&memory, length, 1.0)]));
        let error = started.and_then(|()| self.check()).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(15));
        println!("over: {error}");
        assert_eq!(self.check().unwrap_err().to_string(), error.to_string());
        let again = self.start(&[piece(&memory, length, 1.0)]).unwrap_err();
        assert_eq!(again.to_string(), error.to_string());
        let bytes = self.group.gather(&[]).unwrap_err();
        assert_eq!(bytes.to_string(), error.to_string());
        if matches!(error, CollectiveError::Device { .. }) {
            self.group.abort(&error.to_string());
        }
        // The GPU goes on.
        self.device.wait();
        assert!(self.device.fault().is_none());
        // What was told has to come over before this ends.
        thread::sleep(Duration::from_millis(500));
    }

    pub(super) fn interrupted(mut self) {
        self.ones(5).unwrap();
        if self.rank == 1 {
            thread::sleep(Duration::from_secs(12));
            return;
        }
        let interrupt = self.group.interrupt();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            interrupt.interrupt("the generation is over".into());
        });
        let began = Instant::now();
        let memory = self.memory(&[1.0; 5]);
        self.start(&[piece(&memory, 5, 1.0)]).unwrap();
        let error = self.check().unwrap_err();
        println!("over: {error}");
        assert!(began.elapsed() < Duration::from_secs(8));
    }

    pub(super) fn unequal(mut self) {
        self.ones(5).unwrap();
        self.meet();
        self.group.set_deadline(Duration::from_secs(5));
        let length = if self.rank == 1 { 8 } else { 5 };
        self.until_the_end_of(length);
    }
}

fn piece(memory: &Memory, length: usize, factor: f32) -> Piece {
    Piece {
        address: memory.pointer().0,
        length,
        wire: Wire::F32,
        factor,
    }
}
