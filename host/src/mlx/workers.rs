//! Threads for work that is one thread's each: decompositions of many matrices at once.
//!
//! MLX gives every thread a stream of its own that never ends, so the threads are made once and kept.
//! Arrays may travel to another thread only when they are evaluated.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

type Job = Box<dyn FnOnce() + Send>;

/// The queue of the workers; none where work stays on the caller's thread.
fn queue() -> Option<&'static Mutex<Sender<Job>>> {
    static QUEUE: OnceLock<Option<Mutex<Sender<Job>>>> = OnceLock::new();
    QUEUE.get_or_init(start).as_ref()
}

fn start() -> Option<Mutex<Sender<Job>>> {
    let (sender, jobs) = channel::<Job>();
    let jobs = Arc::new(Mutex::new(jobs));
    let mut started = 0;
    for i in 0..count() {
        let jobs = jobs.clone();
        let work = move || {
            loop {
                let job = jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
                match job {
                    Ok(job) => job(),
                    Err(_) => return,
                }
            }
        };
        started += usize::from(std::thread::Builder::new().name(format!("worker-{i}")).spawn(work).is_ok());
    }
    (started > 0).then(|| Mutex::new(sender))
}

/// Workers there are: the threads of the kernels, one where MLX's own library is threaded.
pub fn count() -> usize {
    super::kernels::threads()
}

/// Does `work` on every input, on at most `at_once` threads, and hands the results to `done` in the
/// order they are ready. Inputs are drawn as they are needed.
///
/// # Errors
/// The first error of an input or of `done`; no further input is drawn then.
pub fn for_each<I, O, E>(
    at_once: usize,
    inputs: impl IntoIterator<Item = Result<I, E>>,
    work: fn(I) -> O,
    mut done: impl FnMut(O) -> Result<(), E>,
) -> Result<(), E>
where
    I: Send + 'static,
    O: Send + 'static,
{
    let mut inputs = inputs.into_iter();
    let at_once = at_once.min(count());
    let Some(queue) = (at_once > 1).then(queue).flatten() else {
        return inputs.try_for_each(|input| done(work(input?)));
    };
    let (results, ready) = channel();
    let mut running = 0;
    let mut failed = None;
    loop {
        while running < at_once
            && failed.is_none()
            && let Some(input) = inputs.next()
        {
            let input = match input {
                Ok(input) => input,
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            };
            let results = results.clone();
            let job = move || {
                // The caller may have given up: nobody to tell then.
                let _ = results.send(catch_unwind(AssertUnwindSafe(|| work(input))));
            };
            let sent = queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).send(Box::new(job));
            if let Err(unsent) = sent {
                // No worker lives any more.
                (unsent.0)();
            }
            running += 1;
        }
        if running == 0 {
            return failed.map_or(Ok(()), Err);
        }
        // One sender lives in this function, so there is always a result to wait for.
        let Ok(result) = ready.recv() else { return failed.map_or(Ok(()), Err) };
        running -= 1;
        let result = result.unwrap_or_else(|panic| resume_unwind(panic));
        // After an error what still runs is waited for: a process must not end in the midst of it.
        if failed.is_none() {
            failed = done(result).err();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::mlx::{Array, spectral};

    #[test]
    fn every_input_is_worked_on_once() {
        for at_once in [1, 3, 100] {
            let mut seen = Vec::new();
            let all = (0..50).map(Ok::<i32, ()>);
            for_each(
                at_once,
                all,
                |x| x * x,
                |y| {
                    seen.push(y);
                    Ok(())
                },
            )
            .unwrap();
            seen.sort_unstable();
            assert_eq!(seen, (0..50).map(|x| x * x).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_first_error_ends_it() {
        let inputs = (0..).map(|x| if x < 5 { Ok(x) } else { Err("six") });
        assert_eq!(for_each(2, inputs, |x| x, |_| Ok(())), Err("six"));
        let mut count = 0;
        let stop = |_| {
            count += 1;
            if count == 3 { Err("enough") } else { Ok(()) }
        };
        assert_eq!(for_each(2, (0..).map(Ok), |x: i32| x, stop), Err("enough"));
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let run = || for_each(2, [Ok::<_, ()>(0), Ok(1)], |x| assert_ne!(x, 1), |()| Ok(()));
        assert!(catch_unwind(run).is_err());
    }

    #[test]
    fn arrays_are_decomposed_on_other_threads() {
        let matrix = |n: i32| {
            let a = Array::from_slice(&[2.0f32, 1.0, 1.0, 2.0], &[2, 2]).multiply(Array::from_f32(n as f32)).unwrap();
            a.eval().unwrap();
            Ok::<_, ()>((n, a))
        };
        let work = |(n, a): (i32, Array)| (n, spectral::to_vec(&spectral::eigenvalues(&a).unwrap()).unwrap());
        for_each(4, (1..20).map(matrix), work, |(n, values)| {
            assert!((values[0] - 3.0 * f64::from(n)).abs() < 1e-9 && (values[1] - f64::from(n)).abs() < 1e-9);
            Ok(())
        })
        .unwrap();
    }
}
