//! Reads what `ptxas -v` prints.

use std::fmt;

/// How grave a message of `ptxas` is, in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Advice, such as a `setmaxnreg` that was ignored.
    Info,
    /// A warning.
    Warning,
    /// An error; no cubin was written.
    Error,
}

/// One line that `ptxas` printed about the PTX.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// How grave it is; `fatal` counts as an error.
    pub severity: Severity,
    /// Line of the PTX text, from 1, where one is given.
    pub line: Option<u32>,
    /// The number of a coded message, such as `C7508`; empty where there is none.
    pub code: String,
    /// The text without severity, place and code.
    pub text: String,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        f.write_str(severity)?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        if let Some(line) = self.line {
            write!(f, " at line {line}")?;
        }
        write!(f, ": {}", self.text)
    }
}

/// Bytes that a kernel takes of one constant bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConstBank {
    /// Number of the bank; 0 holds the parameters.
    pub bank: u32,
    /// Bytes used.
    pub bytes: u32,
}

/// Resources of one `.entry`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntryReport {
    /// Name of the entry, as in the PTX.
    pub name: String,
    /// The machine it was compiled for, such as `sm_90a`.
    pub target: String,
    /// Registers a thread.
    pub registers: u32,
    /// Named barriers a block.
    pub barriers: u32,
    /// Static shared memory, bytes a block.
    pub static_smem_bytes: u32,
    /// Stack frame, bytes a thread.
    pub stack_bytes: u32,
    /// Stack of the entry and all that it calls, bytes a thread; 0 where `ptxas` gives none.
    pub cumulative_stack_bytes: u32,
    /// Bytes of registers stored to local memory for want of registers.
    pub spill_store_bytes: u32,
    /// Bytes of registers loaded back.
    pub spill_load_bytes: u32,
    /// Constant banks; newer releases print none.
    pub const_banks: Vec<ConstBank>,
}

/// Stack and spills of one `.func` that was not inlined.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FunctionReport {
    /// Name of the function, as in the PTX.
    pub name: String,
    /// Stack frame, bytes a thread.
    pub stack_bytes: u32,
    /// Bytes of registers stored to local memory for want of registers.
    pub spill_store_bytes: u32,
    /// Bytes of registers loaded back.
    pub spill_load_bytes: u32,
}

/// Everything that `ptxas -v` says about one PTX text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// `.global` variables, bytes.
    pub global_bytes: u64,
    /// Entries, in the order printed.
    pub entries: Vec<EntryReport>,
    /// Functions, in the order printed.
    pub functions: Vec<FunctionReport>,
    /// Warnings and advice, without the resource lines.
    pub messages: Vec<Message>,
}

impl Report {
    /// The entry of that name.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&EntryReport> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// Bytes spilled by all entries and functions, stores and loads together.
    #[must_use]
    pub fn spill_bytes(&self) -> u64 {
        let entries = self.entries.iter().map(|e| u64::from(e.spill_store_bytes) + u64::from(e.spill_load_bytes));
        let functions = self.functions.iter().map(|f| u64::from(f.spill_store_bytes) + u64::from(f.spill_load_bytes));
        entries.chain(functions).sum()
    }
}

/// Splits the output of `ptxas` into messages, resource lines included.
#[must_use]
pub fn parse_messages(text: &str) -> Vec<Message> {
    text.lines().filter_map(parse_message).collect()
}

/// Reads the output of a successful `ptxas -v`. Lines that are not understood are left out.
#[must_use]
pub fn parse_report(text: &str) -> Report {
    let mut report = Report::default();
    // The entry being compiled, and the function whose properties the next indented line gives.
    let mut current: Option<usize> = None;
    let mut subject: Option<String> = None;
    for line in text.lines() {
        let Some(message) = parse_message(line) else {
            if let Some(name) = subject.take()
                && let Some((stack, stores, loads)) = parse_properties(line)
            {
                match report.entries.iter_mut().find(|entry| entry.name == name) {
                    Some(entry) => {
                        entry.stack_bytes = stack;
                        entry.spill_store_bytes = stores;
                        entry.spill_load_bytes = loads;
                    }
                    None => report.functions.push(FunctionReport {
                        name,
                        stack_bytes: stack,
                        spill_store_bytes: stores,
                        spill_load_bytes: loads,
                    }),
                }
            }
            continue;
        };
        let said = message.text.as_str();
        if let Some(rest) = said.strip_prefix("Compiling entry function '") {
            let mut quoted = rest.split('\'');
            let name = quoted.next().unwrap_or_default().to_string();
            let target = quoted.nth(1).unwrap_or_default().to_string();
            current = Some(report.entries.len());
            report.entries.push(EntryReport { name, target, ..EntryReport::default() });
        } else if let Some(name) = said.strip_prefix("Function properties for ") {
            subject = Some(name.trim().to_string());
        } else if said.starts_with("Used ") {
            if let Some(entry) = current.and_then(|index| report.entries.get_mut(index)) {
                parse_used(said, entry);
            }
        } else if said.contains("bytes gmem") {
            report.global_bytes = leading_number(said).unwrap_or(0);
        } else if !said.starts_with("Compile time") {
            report.messages.push(message);
        }
    }
    report
}

/// `ptxas FILE, line 6; error   : text` or `ptxas info    : (C7508) text`; `None` for anything else.
fn parse_message(line: &str) -> Option<Message> {
    let rest = line.strip_prefix("ptxas ")?;
    let (head, text) = rest.split_once(" : ").or_else(|| rest.split_once(": "))?;
    let (place, severity) = match head.rsplit_once(';') {
        Some((place, severity)) => (Some(place), severity),
        None => (None, head),
    };
    let severity = match severity.trim() {
        "info" | "Info" => Severity::Info,
        "warning" | "Warning" => Severity::Warning,
        "error" | "fatal" | "Error" | "Fatal" => Severity::Error,
        _ => return None,
    };
    let line = place.and_then(|place| place.rsplit_once("line ")).and_then(|(_, number)| number.trim().parse().ok());
    let text = text.trim();
    let (code, text) = match text.strip_prefix('(').and_then(|t| t.split_once(')')) {
        Some((code, rest)) if is_code(code) => (code.to_string(), rest.trim_start()),
        _ => (String::new(), text),
    };
    Some(Message { severity, line, code, text: text.to_string() })
}

/// `C7508`: one letter and digits.
fn is_code(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_uppercase()) && text.len() > 1 && chars.all(|c| c.is_ascii_digit())
}

/// `    64 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads`.
fn parse_properties(line: &str) -> Option<(u32, u32, u32)> {
    let mut found = (None, None, None);
    for part in line.split(',') {
        let number = leading_number(part).and_then(|n| u32::try_from(n).ok());
        if part.contains("stack frame") {
            found.0 = number;
        } else if part.contains("spill stores") {
            found.1 = number;
        } else if part.contains("spill loads") {
            found.2 = number;
        }
    }
    Some((found.0?, found.1?, found.2?))
}

/// `Used 34 registers, used 1 barriers, 256+1024 bytes smem, 400 bytes cmem[0], 64 bytes cumulative stack size`.
fn parse_used(text: &str, entry: &mut EntryReport) {
    for part in text.split(',') {
        let number = sum_of_numbers(part);
        if part.contains("registers") {
            entry.registers = number;
        } else if part.contains("barriers") {
            entry.barriers = number;
        } else if part.contains("smem") {
            entry.static_smem_bytes = number;
        } else if part.contains("cumulative stack") {
            entry.cumulative_stack_bytes = number;
        } else if let Some((_, rest)) = part.split_once("cmem[")
            && let Some(bank) = rest.split(']').next().and_then(|bank| bank.parse().ok())
        {
            entry.const_banks.push(ConstBank { bank, bytes: number });
        }
    }
}

/// The number in front, after any words: `used 1 barriers` gives 1; `256+1024 bytes smem` gives 1280.
fn sum_of_numbers(part: &str) -> u32 {
    let word = part.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    word.map_or(0, |word| word.split('+').filter_map(|n| n.parse::<u32>().ok()).fold(0, u32::saturating_add))
}

fn leading_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: &str = "\
ptxas warning : Stack size for entry function 'flow' cannot be statically determined
ptxas info    : 85 bytes gmem
ptxas info    : Compiling entry function 'flow' for 'sm_90a'
ptxas info    : Function properties for flow
    64 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 34 registers, used 2 barriers, 256 bytes smem, 400 bytes cmem[0], 64 bytes cumulative stack size
ptxas info    : Compile time = 21.442 ms
ptxas info    : Function properties for _Z3fibi
    24 bytes stack frame, 20 bytes spill stores, 16 bytes spill loads
ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored to maintain minimum register requirements.
";

    #[test]
    fn every_figure_of_the_verbose_report_is_read() {
        let report = parse_report(FLOW);
        assert_eq!(report.global_bytes, 85);
        assert_eq!(
            report.entries,
            [EntryReport {
                name: "flow".into(),
                target: "sm_90a".into(),
                registers: 34,
                barriers: 2,
                static_smem_bytes: 256,
                stack_bytes: 64,
                cumulative_stack_bytes: 64,
                spill_store_bytes: 0,
                spill_load_bytes: 0,
                const_banks: vec![ConstBank { bank: 0, bytes: 400 }],
            }]
        );
        assert_eq!(report.functions.len(), 1);
        assert_eq!(report.functions[0].spill_load_bytes, 16);
        assert_eq!(report.spill_bytes(), 36);
        assert_eq!(report.messages.len(), 2);
        assert_eq!(report.messages[1].code, "C7508");
    }

    #[test]
    fn errors_carry_their_line() {
        let text = "ptxas /tmp/bad, name.ptx, line 7; error   : Not a name of any known instruction: 'foo'\n\
                    ptxas /tmp/bad.ptx, line 11; fatal   : Parsing error near '1': syntax error\n\
                    ptxas fatal   : Ptx assembly aborted due to errors\n";
        let messages = parse_messages(text);
        assert_eq!(messages.len(), 3);
        assert_eq!(messages[0].line, Some(7));
        assert_eq!(messages[0].text, "Not a name of any known instruction: 'foo'");
        assert_eq!(messages[1].severity, Severity::Error);
        assert_eq!(messages[1].text, "Parsing error near '1': syntax error");
        assert_eq!(messages[2].line, None);
    }
}
