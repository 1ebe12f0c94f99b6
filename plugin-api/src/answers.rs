//! Questions with answers: whether a model's own words are the answer that is right.
//!
//! Exact match, as in SQuAD (Rajpurkar et al., EMNLP 2016): the text a model decodes greedily after
//! the prompt, normalised, equals the right answer, normalised.

use crate::evaluator::{Measure, Subject};
use crate::records::Example;

/// Tokens beyond the right answer's own where it may stand anywhere in the text.
const AROUND: u32 = 16;

/// How texts are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matching {
    /// Whether A is another letter than a.
    pub case: bool,
    /// Whether the right answer may stand anywhere in the text.
    pub contains: bool,
    /// Tokens to decode; 0: as many as the right answer has, and 16 more where it may stand anywhere.
    pub max_tokens: u32,
}

impl Matching {
    /// A text with white space trimmed and collapsed and, unless case counts, in lower case.
    pub fn normalised(&self, text: &str) -> String {
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if self.case { words } else { words.to_lowercase() }
    }

    /// Whether a text is, or has in it, the right answer.
    pub fn is_right(&self, text: &str, answer: &str) -> bool {
        let (text, answer) = (self.normalised(text), self.normalised(answer));
        if self.contains { text.contains(&answer) } else { text == answer }
    }
}

/// The prompts an evaluator asks: the first `most`, all for 0.
///
/// # Errors
/// The evaluation text has no questions, or an answer is empty.
pub fn questions(host: &dyn Measure, most: u32) -> Result<Vec<Example>, String> {
    let available = host.examples();
    let count = if most == 0 { available } else { most.min(available) };
    if count == 0 {
        return Err(
            "there are no questions: the data needs rows with `prompt` and `completion`, or `messages` that end with the assistant's; data/questions.jsonl has some"
                .into(),
        );
    }
    let mut questions = Vec::with_capacity(count as usize);
    for i in 0..count {
        let question = host.example(i)?;
        if question.answer.trim().is_empty() {
            return Err(format!("question {i} has an empty answer: nothing can match it"));
        }
        questions.push(question);
    }
    Ok(questions)
}

/// Tokens of a question's answer: what prompt and answer together have beyond the prompt.
///
/// # Errors
/// The host's, or the answer has no token of its own.
pub fn tokens(host: &dyn Measure, question: &Example) -> Result<(Vec<u32>, usize), String> {
    let whole = host.tokenize(&format!("{}{}", question.prompt, question.answer))?;
    let prompt = host.tokenize(&question.prompt)?.len().max(1);
    match whole.len() > prompt {
        true => Ok((whole, prompt)),
        false => Err(format!("the answer {:?} has no token of its own after its prompt", question.answer)),
    }
}

/// Which of the same questions, in the same order, base and candidate answer right; the base is asked once.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    base: Vec<bool>,
}

impl Answers {
    /// (right under the base, right under the candidate), question by question.
    ///
    /// # Errors
    /// The host's.
    pub fn of(
        &mut self,
        host: &dyn Measure,
        questions: &[Example],
        how: &Matching,
    ) -> Result<Vec<(bool, bool)>, String> {
        let mut lengths = Vec::with_capacity(questions.len());
        for q in questions {
            let (whole, prompt) = tokens(host, q)?;
            let own = (whole.len() - prompt) as u32;
            lengths.push(match how.max_tokens {
                0 if how.contains => own + AROUND,
                0 => own,
                given => given,
            });
        }
        let ask = |subject, i: usize| -> Result<bool, String> {
            let q: &Example = &questions[i];
            Ok(how.is_right(&host.generate(subject, &q.prompt, lengths[i])?, &q.answer))
        };
        // All of one model, then all of the other: changing between them costs the host.
        for i in self.base.len()..questions.len() {
            let is_right = ask(Subject::Base, i)?;
            self.base.push(is_right);
        }
        let pair = |i: usize| Ok((self.base.get(i) == Some(&true), ask(Subject::Candidate, i)?));
        (0..questions.len()).map(pair).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_compared_as_told() {
        let plain = Matching::default();
        assert!(plain.is_right(" The  answer\n", "the ANSWER"));
        assert!(!plain.is_right("The answer is 4", "4"));
        let case = Matching { case: true, ..plain };
        assert!(!case.is_right("paris", "Paris") && case.is_right("\tParis ", "Paris"));
        let anywhere = Matching { contains: true, ..plain };
        assert!(anywhere.is_right("It is  Paris, of course", "paris,") && !anywhere.is_right("Par is", "Paris"));
    }
}
