use super::{TokenKind, tokenize};
use crate::ast::{Module, Operand, Statement};

fn words(source: &str) -> Vec<&str> {
    tokenize(source).unwrap().into_iter().filter(|t| t.kind != TokenKind::End).map(|t| t.text).collect()
}

const HEADER: &str = ".version 8.0\n.target sm_90a\n.address_size 64\n";

fn body(text: &str) -> Vec<Statement> {
    let module = Module::parse(&format!("{HEADER}.entry k() {{ {text} }}")).unwrap();
    module.entries().next().unwrap().body.clone().unwrap()
}

#[test]
fn printing_gives_the_same_tokens() {
    let source = format!(
        "{HEADER}.extern .shared .align 16 .b8 s[];\n.global .align 8 .u64 names[2] = {{generic(a)+4, b}};\n\
         .func (.param .b32 r) f(.param .align 8 .b8 p[32], .param .b32 q);\n\
         .visible .entry k(.param .u64 .ptr .global .align 1 a) .reqntid 128, 1, 1 .minnctapersm 1 {{\n\
         .reg .pred %p<4>; .reg.b32 x, y; .pragma \"nounroll\";\n.loc 1 2 3\n\
         $L: @!%p1 bra $L; mov.b64 {{x, y}}, %rd1; ld.global.v4.u32 {{%r1,_,%r2,%r3}}, [%rd1+-16];\n\
         elect.sync %r1|%p1, -1; {{ .reg .b128 q; mov.u32 %r1, %tid.x; }}\n\
         cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {{%r1, %r2}}], [%r3];\n\
         call.uni (r0), f, (p0, 0f3F800000); P: .callprototype (.param .b32 _) _ (.param .b32 _); T: .branchtargets $L, $L; \n\
         setp.lt.and.s32 %p1|%p2, %r1, -5, !%p3; ret; }}"
    );
    let module = Module::parse(&source).unwrap();
    let printed = module.to_string();
    assert_eq!(words(&source), words(&printed));
    let again = Module::parse(&printed).unwrap();
    assert_eq!(again.to_string(), printed);
}

#[test]
fn a_dot_after_a_gap_is_not_a_component() {
    let statements = body("mov.u32 %r1, %tid.x;");
    let Statement::Instruction(i) = &statements[0] else { panic!("{statements:?}") };
    assert_eq!(i.operands[1], Operand::Name("%tid.x".into()));
}

#[test]
fn errors_say_where_and_show_the_line() {
    let e = Module::parse(&format!("{HEADER}.entry k() {{\n  add.s32 %r1, %r2 %r3;\n}}")).unwrap_err();
    assert_eq!((e.pos.line, e.pos.column), (5, 20));
    assert_eq!(e.text, "add.s32 %r1, %r2 %r3;");
    assert!(e.message.contains("`;`"), "{}", e.message);
}

#[test]
fn deep_nesting_is_refused() {
    let source = format!("{HEADER}.entry k() {}{}", "{".repeat(100_000), "}".repeat(100_000));
    assert!(Module::parse(&source).unwrap_err().message.contains("nested"));
}

#[test]
fn numbers_of_every_spelling() {
    use crate::ast::Number;
    for (text, value) in [
        ("0x1F", Number::Int(31)),
        ("017", Number::Int(15)),
        ("0b101", Number::Int(5)),
        ("-7", Number::Int(-7)),
        ("12U", Number::Int(12)),
        ("0f3F800000", Number::F32(0x3f80_0000)),
        ("0d3FF0000000000000", Number::F64(1f64.to_bits())),
        ("1.5", Number::F64(1.5f64.to_bits())),
        ("1e3", Number::F64(1000f64.to_bits())),
    ] {
        let statements = body(&format!("mov.b64 %rd1, {text};"));
        let Statement::Instruction(i) = &statements[0] else { panic!("{statements:?}") };
        let Operand::Literal(l) = &i.operands[1] else { panic!("{i:?}") };
        assert_eq!((l.value, l.text.as_str()), (value, text));
    }
}

#[test]
fn header_directives_may_share_a_line() {
    let module =
        Module::parse(".version 8.0 .target sm_90a, debug .address_size 64 .visible .entry k() { ret; }").unwrap();
    assert_eq!((module.version, module.address_size), ((8, 0), 64));
    assert_eq!(module.target, ["sm_90a", "debug"]);
    assert_eq!(module.entries().count(), 1);
}

#[test]
fn words_that_do_not_belong_to_the_header_are_refused() {
    let of = |header: &str| Module::parse(&format!("{header}\n.visible .entry k() {{ ret; }}")).map_err(|e| e.message);
    let fine =
        [".version 8.0\n.target sm_90a,\n debug\n.address_size 64", ".version 8.0 .target sm_90a, texmode_unified"];
    for header in fine {
        of(header).unwrap_or_else(|e| panic!("{header}: {e}"));
    }
    let refused = [
        (".version 8.0\n.target sm_90a foo", "expected a directive, found `foo`"),
        (".version 8.0\n.target sm_90a debug", "expected a directive, found `debug`"),
        (".version 8.0\n.target sm_90a ;", "expected a directive, found `;`"),
        (".version 8.0\n.target debug", "expected an architecture, as in `sm_90a`, found `debug`"),
        (
            ".version 8.0\n.target sm_90a, foo",
            "expected one of debug, texmode_unified, texmode_independent, map_f64_to_f32, found `foo`",
        ),
        (".version 8.0 1\n.target sm_90a", "expected a directive, found `1`"),
        (".version 8\n.target sm_90a", "expected a version, as in `8.0`, found `8`"),
        (".version 8.0\n.target sm_90a\n.address_size 48", "expected 32 or 64, found `48`"),
        (".version 8.0\n.target sm_90a\n.address_size 64 64", "expected a directive, found `64`"),
    ];
    for (header, message) in refused {
        assert_eq!(of(header).expect_err(header), message, "{header}");
    }
}
