//! The syntax tree of a PTX module.
//!
//! The tree keeps what the text says, token for token (comments and white space apart), so that printing a parsed
//! module gives the same tokens again. Names are not resolved here: `Operand::Name` may be a register, a special
//! register, a variable, a label or a function.

/// A place in the source text; both count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pos {
    /// Line.
    pub line: u32,
    /// Column in characters.
    pub column: u32,
}

/// A whole translation unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// `.version major.minor`.
    pub version: (u32, u32),
    /// `.target` list; the first is the architecture (`sm_90a`).
    pub target: Vec<String>,
    /// `.address_size`, 64 when absent in the text.
    pub address_size: u32,
    /// Everything after the header in the order of the text, header directives included.
    pub items: Vec<Item>,
}

impl Module {
    /// The functions and kernels, declarations included.
    pub fn functions(&self) -> impl Iterator<Item = &Function> {
        self.items.iter().filter_map(|i| match i {
            Item::Function(f) => Some(f),
            Item::Variable(_) | Item::Directive(_) => None,
        })
    }

    /// The module-scope variables.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.items.iter().filter_map(|i| match i {
            Item::Variable(v) => Some(v),
            Item::Function(_) | Item::Directive(_) => None,
        })
    }

    /// The kernels (`.entry`) that have a body.
    pub fn entries(&self) -> impl Iterator<Item = &Function> {
        self.functions().filter(|f| f.entry && f.body.is_some())
    }
}

/// A module-scope item.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// `.global`, `.const`, `.shared` … at module scope.
    Variable(Variable),
    /// `.func` or `.entry`.
    Function(Function),
    /// `.version`, `.target`, `.address_size`, `.file`, `.section`, `.pragma`, `.alias` …
    Directive(Directive),
}

/// A directive kept as tokens: `.pragma "nounroll";`, `.loc 1 2 3`, `.maxntid 128, 1, 1`.
#[derive(Clone, Debug, PartialEq)]
pub struct Directive {
    /// Where the directive starts.
    pub pos: Pos,
    /// The name without its dot.
    pub name: String,
    /// The tokens after the name, the closing `;` included if there was one.
    pub args: Vec<String>,
}

impl Directive {
    /// The arguments that are integers, in order.
    pub fn integers(&self) -> Vec<u64> {
        self.args.iter().filter_map(|a| a.parse().ok()).collect()
    }
}

/// State spaces in which variables are declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// `.reg`
    Reg,
    /// `.global`
    Global,
    /// `.const`
    Const,
    /// `.shared`
    Shared,
    /// `.local`
    Local,
    /// `.param`
    Param,
}

impl Space {
    /// The keyword without its dot.
    pub fn keyword(self) -> &'static str {
        match self {
            Space::Reg => "reg",
            Space::Global => "global",
            Space::Const => "const",
            Space::Shared => "shared",
            Space::Local => "local",
            Space::Param => "param",
        }
    }
}

/// A declared variable, parameter or register group.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    /// Where the declaration starts.
    pub pos: Pos,
    /// `extern`, `visible`, `weak`, `common`, in order, without dots.
    pub linkage: Vec<String>,
    /// State space.
    pub space: Space,
    /// The qualifiers between space and name as written, without dots: `align`, `16`, `v4`, `b8`, `ptr`, `global` …
    pub qualifiers: Vec<String>,
    /// Alignment in bytes of the variable itself, if given.
    pub align: Option<u32>,
    /// Elements of the vector type, 1 without `.v2/.v4/.v8`.
    pub vector: u32,
    /// Element type without dot: `b8`, `u64`, `f32`, `pred` …
    pub ty: String,
    /// The declared names; several only in `.reg .b32 a, b;` and the like.
    pub names: Vec<Declarator>,
}

/// One declared name.
#[derive(Clone, Debug, PartialEq)]
pub struct Declarator {
    /// Where the name stands.
    pub pos: Pos,
    /// The name, `%` included.
    pub name: String,
    /// `<n>`: declares `name0 … name(n-1)`.
    pub range: Option<Literal>,
    /// `[n]` for each dimension; `None` for `[]`.
    pub dims: Vec<Option<Literal>>,
    /// `= …`
    pub init: Option<Initializer>,
}

/// An initial value.
#[derive(Clone, Debug, PartialEq)]
pub enum Initializer {
    /// `3`, `-1.0`, `0fBF800000`
    Literal(Literal),
    /// `sym`, `sym+8`, `generic(sym)+8`, `mask(sym)`.
    Symbol {
        /// `generic` or `0xFF00`-style mask operator, when written.
        operator: Option<String>,
        /// The named variable or function.
        name: String,
        /// Bytes added, with the tokens that say so.
        offset: Option<Offset>,
    },
    /// `{a, b, {c, d}}`
    List(Vec<Initializer>),
}

/// A number as written and as understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Literal {
    /// The spelling, a leading minus included.
    pub text: String,
    /// The value.
    pub value: Number,
}

/// The value of a literal.
#[derive(Clone, Copy, Debug)]
pub enum Number {
    /// An integer, in two's complement if negative.
    Int(i128),
    /// `0f3F800000`: the bits of a binary32.
    F32(u32),
    /// `0d…` or a decimal fraction: the bits of a binary64.
    F64(u64),
}

impl PartialEq for Number {
    fn eq(&self, other: &Number) -> bool {
        match (self, other) {
            (Number::Int(a), Number::Int(b)) => a == b,
            (Number::F32(a), Number::F32(b)) => a == b,
            (Number::F64(a), Number::F64(b)) => a == b,
            (Number::Int(_) | Number::F32(_) | Number::F64(_), _) => false,
        }
    }
}

/// A byte offset such as `+8`, `+-8` or `-8`.
#[derive(Clone, Debug, PartialEq)]
pub struct Offset {
    /// The operator and number as tokens.
    pub tokens: Vec<String>,
    /// Bytes.
    pub value: i64,
}

/// A kernel or device function.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// Where the function starts.
    pub pos: Pos,
    /// `visible`, `extern`, `weak`, without dots.
    pub linkage: Vec<String>,
    /// `.entry` (a kernel) or `.func`.
    pub entry: bool,
    /// `.attribute(…)` and the like between the keyword and the name, as tokens.
    pub attributes: Vec<String>,
    /// Name.
    pub name: String,
    /// Return parameters, `None` when the text has no such list.
    pub returns: Option<Vec<Variable>>,
    /// Parameters, `None` when the text has no list.
    pub params: Option<Vec<Variable>>,
    /// `.maxntid`, `.reqntid`, `.pragma` … before the body.
    pub directives: Vec<Directive>,
    /// The body; `None` for a declaration.
    pub body: Option<Vec<Statement>>,
}

impl Function {
    /// The arguments of a performance directive such as `reqntid`.
    pub fn directive(&self, name: &str) -> Option<Vec<u64>> {
        self.directives.iter().find(|d| d.name == name).map(Directive::integers)
    }
}

/// A statement of a function body.
#[derive(Clone, Debug, PartialEq)]
pub enum Statement {
    /// `name:`
    Label(Pos, String),
    /// An instruction with its `;`.
    Instruction(Instruction),
    /// `.reg`, `.shared`, `.local`, `.param` declarations.
    Variable(Variable),
    /// `{ … }`
    Scope(Pos, Vec<Statement>),
    /// `.branchtargets` / `.calltargets` under the label that precedes them.
    Targets {
        /// Where the directive starts.
        pos: Pos,
        /// `branchtargets` or `calltargets`.
        kind: String,
        /// Labels or functions.
        names: Vec<String>,
    },
    /// `.callprototype` under the label that precedes it.
    Prototype {
        /// Where the directive starts.
        pos: Pos,
        /// Return parameters.
        returns: Option<Vec<Variable>>,
        /// Parameters.
        params: Option<Vec<Variable>>,
        /// `.noreturn` and the like.
        directives: Vec<Directive>,
    },
    /// `.loc`, `.pragma` …
    Directive(Directive),
}

/// `@p op.mods a, b;`
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// Where the instruction (its guard, if any) starts.
    pub pos: Pos,
    /// `@p` or `@!p`.
    pub guard: Option<Guard>,
    /// The first word: `mma`, `ld`, `tcgen05`.
    pub opcode: String,
    /// The dot words, without dots, in order: `sync`, `aligned`, `shared::cta`, `wait::ld`.
    pub modifiers: Vec<String>,
    /// Operands in order.
    pub operands: Vec<Operand>,
}

impl Instruction {
    /// Whether the dot word is among the modifiers.
    pub fn has(&self, modifier: &str) -> bool {
        self.modifiers.iter().any(|m| m == modifier)
    }

    /// `opcode.mod.mod`.
    pub fn full_name(&self) -> String {
        let mut s = self.opcode.clone();
        for m in &self.modifiers {
            s.push('.');
            s.push_str(m);
        }
        s
    }
}

/// The guard predicate of an instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Guard {
    /// `@!p`
    pub negated: bool,
    /// The predicate register.
    pub name: String,
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A register, special register (`%tid.x`), variable, label, function, or `WARP_SZ`.
    Name(String),
    /// `sym+8`
    Sum(String, Offset),
    /// `generic(sym)`-like operator on a symbol.
    Operator(String, String),
    /// A number.
    Literal(Literal),
    /// `!p`
    Not(String),
    /// `-%r` as some inline assembly writes.
    Neg(String),
    /// `_`
    Sink,
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `a|b`
    Pair(Box<Operand>, Box<Operand>),
    /// `[base+offset]`, `[base]`, `[64]`
    Address(Address),
    /// `[map, {c0, c1}]`, also with im2col offsets elsewhere
    Tensor {
        /// The tensor map's address.
        map: Address,
        /// The rest inside the brackets: coordinates (a vector, or a single operand).
        coordinates: Vec<Operand>,
    },
    /// `(a, b)` of a call.
    List(Vec<Operand>),
}

/// The inside of a bracketed operand.
#[derive(Clone, Debug, PartialEq)]
pub struct Address {
    /// Register, variable or number.
    pub base: Box<Operand>,
    /// Bytes added.
    pub offset: Option<Offset>,
}
