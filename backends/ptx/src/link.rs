//! Several modules made one, as a linker does.

use crate::ast::{Item, Module, Statement};
use std::collections::BTreeMap;

/// Joins modules: what one declares as `.extern` and another defines becomes one thing. The newest `.version` counts; the
/// `.target` is the first module's. Places of the source (`.file`) are kept of the first module only.
///
/// # Errors
/// A sentence that names what two modules define, or that there is no module.
pub fn link(modules: &[Module]) -> Result<Module, String> {
    let Some((first, others)) = modules.split_first() else { return Err("there is nothing to link".to_owned()) };
    let mut defined: BTreeMap<&str, usize> = BTreeMap::new();
    for (n, module) in modules.iter().enumerate() {
        for (name, weak) in module.items.iter().flat_map(definitions) {
            match defined.get(name) {
                Some(other) if *other != n && !weak => return Err(format!("`{name}` is defined by two modules")),
                Some(_) => {}
                None => {
                    defined.insert(name, n);
                }
            }
        }
    }
    let mut out = first.clone();
    out.version = modules.iter().map(|m| m.version).max().unwrap_or(first.version);
    for item in &mut out.items {
        if let Item::Directive(d) = item
            && d.name == "version"
        {
            d.args = vec![format!("{}.{}", out.version.0, out.version.1)];
        }
    }
    let stays = |item: &Item, n: usize| match item {
        Item::Directive(_) => n == 0,
        Item::Function(f) => defined.get(f.name.as_str()).is_none_or(|at| *at == n) || f.name.is_empty(),
        Item::Variable(v) => v.names.iter().all(|d| defined.get(d.name.as_str()).is_none_or(|at| *at == n)),
    };
    out.items.retain(|item| stays(item, 0));
    for (n, module) in others.iter().enumerate() {
        let more = module.items.iter().filter(|item| stays(item, n + 1)).map(|item| without_places(item.clone()));
        out.items.extend(more);
    }
    Ok(out)
}

/// The names that an item defines for other modules, and whether another definition may win.
fn definitions(item: &Item) -> Vec<(&str, bool)> {
    let weak = |linkage: &[String]| linkage.iter().any(|l| l == "weak" || l == "common");
    match item {
        Item::Function(f) if f.body.is_some() => vec![(&f.name, weak(&f.linkage))],
        Item::Variable(v) if !v.linkage.iter().any(|l| l == "extern") => {
            v.names.iter().map(|d| (d.name.as_str(), weak(&v.linkage))).collect()
        }
        Item::Function(_) | Item::Variable(_) | Item::Directive(_) => Vec::new(),
    }
}

/// An item without `.loc`, whose files are numbered by its own module.
fn without_places(mut item: Item) -> Item {
    if let Item::Function(f) = &mut item
        && let Some(body) = &mut f.body
    {
        forget_places(body);
    }
    item
}

fn forget_places(body: &mut Vec<Statement>) {
    body.retain(|s| !matches!(s, Statement::Directive(d) if d.name == "loc"));
    for statement in body {
        if let Statement::Scope(_, inner) = statement {
            forget_places(inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN: &str = ".version 8.0 .target sm_80 .address_size 64
        .extern .func (.param .b32 r) twice(.param .b32 a);
        .visible .entry k(.param .u64 p) { ret; }";
    const OTHER: &str = ".version 8.3 .target sm_80 .address_size 64
        .visible .func (.param .b32 r) twice(.param .b32 a) { ret; }";

    #[test]
    fn declarations_become_definitions() {
        let modules = [MAIN, OTHER].map(|t| Module::parse(t).unwrap());
        let linked = link(&modules).unwrap();
        assert_eq!(linked.version, (8, 3));
        assert_eq!(linked.functions().filter(|f| f.name == "twice").count(), 1);
        assert_eq!(Module::parse(&linked.to_string()).unwrap().entries().count(), 1);
        let twice = [MAIN, OTHER, OTHER].map(|t| Module::parse(t).unwrap());
        assert_eq!(link(&twice).unwrap_err(), "`twice` is defined by two modules");
        assert!(link(&[]).is_err());
    }
}
