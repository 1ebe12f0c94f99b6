//! What was measured already: scores of the base for the whole run, of the current state until the next
//! commit, of the candidate for its own step.

use std::collections::HashMap;

/// Whose state is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// Everything awake.
    Base,
    /// The last committed state.
    Current,
    /// The state under judgement.
    Candidate,
}

impl Subject {
    /// By its name in the contract.
    ///
    /// # Errors
    /// A sentence with the names there are.
    pub(super) fn parse(name: &str) -> Result<Subject, String> {
        match name {
            "base" => Ok(Subject::Base),
            "current" => Ok(Subject::Current),
            "candidate" => Ok(Subject::Candidate),
            other => Err(format!("unknown subject {other:?}: use base, current or candidate")),
        }
    }
}

/// Losses of one subject, window by window, how fast they came and what memory it took.
#[derive(Clone, Debug, Default)]
pub(super) struct Scores {
    /// Log-probabilities of tokens 1.. of each window.
    pub(super) windows: Vec<Option<Vec<f32>>>,
    /// Tokens and seconds of each batch.
    pub(super) speed: Vec<(usize, f64)>,
    /// Most bytes MLX held while it was at work.
    pub(super) peak: u64,
}

impl Scores {
    fn new(windows: usize) -> Scores {
        Scores { windows: vec![None; windows], speed: Vec::new(), peak: 0 }
    }

    pub(super) fn tokens_per_second(&self) -> Option<f64> {
        // The first batch also pays for copies and page faults.
        let rated = if self.speed.len() > 1 { &self.speed[1..] } else { &self.speed[..] };
        let (tokens, seconds) = rated.iter().fold((0, 0.0), |(t, s), (a, b)| (t + a, s + b));
        (seconds > 0.0).then(|| tokens as f64 / seconds)
    }
}

/// Scores that outlive one evaluation.
#[derive(Clone, Debug)]
pub struct ScoreBook {
    base: Scores,
    current: Scores,
    candidate: Scores,
    /// Divergences of one window, per token: (reference, of, window).
    pub(super) divergences: HashMap<(Subject, Subject, usize), Vec<f32>>,
    /// Seconds the model was at work.
    pub(super) seconds: f64,
}

impl ScoreBook {
    /// For so many windows.
    pub fn new(windows: usize) -> ScoreBook {
        let empty = Scores::new(windows);
        ScoreBook {
            base: empty.clone(),
            current: empty.clone(),
            candidate: empty,
            divergences: HashMap::new(),
            seconds: 0.0,
        }
    }

    /// Forgets the candidate.
    pub fn begin(&mut self) {
        self.candidate = Scores::new(self.base.windows.len());
        self.divergences.clear();
        self.seconds = 0.0;
    }

    /// The candidate became current.
    pub fn promote(&mut self) {
        self.current = self.candidate.clone();
    }

    /// Seconds the model was at work since [`ScoreBook::begin`].
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Tokens scored a second: the base and the candidate.
    pub fn tokens_per_second(&self) -> Option<[f64; 2]> {
        Some([self.base.tokens_per_second()?, self.candidate.tokens_per_second()?])
    }

    pub(super) fn of(&mut self, subject: Subject) -> &mut Scores {
        match subject {
            Subject::Base => &mut self.base,
            Subject::Current => &mut self.current,
            Subject::Candidate => &mut self.candidate,
        }
    }
}
