//! Builds graphs node by node, with types inferred.

use super::{Graph, Input, Node, Op, Param, ValueId, infer_type};
use crate::diag::{Diagnostic, Origin};
use crate::quant::QuantFormat;
use crate::shape::TensorType;
use crate::weights::WeightSource;

/// Builds a [`Graph`]. The type of each node is inferred from its operands and checked at once.
pub struct GraphBuilder {
    graph: Graph,
    origin: Option<Origin>,
}

impl GraphBuilder {
    /// An empty graph called `name`.
    pub fn new(name: impl Into<String>) -> GraphBuilder {
        GraphBuilder { graph: Graph { name: name.into(), ..Graph::default() }, origin: None }
    }

    /// Sets the origin of the nodes that follow.
    pub fn set_origin(&mut self, origin: Option<Origin>) {
        self.origin = origin;
    }

    /// Adds an input of the caller.
    pub fn input(&mut self, name: &str, ty: TensorType) -> ValueId {
        let n = self.graph.inputs.len() as u32;
        self.graph.inputs.push(Input { name: name.to_string(), ty: ty.clone() });
        self.push(name.to_string(), Op::Input(n), Vec::new(), ty)
    }

    /// Adds a parameter of the checkpoint.
    pub fn param(&mut self, name: &str, ty: TensorType, source: WeightSource) -> ValueId {
        let n = self.graph.params.len() as u32;
        self.graph.params.push(Param { name: name.to_string(), ty: ty.clone(), source, stored: None });
        self.push(name.to_string(), Op::Param(n), Vec::new(), ty)
    }

    /// Says how the parameter that `value` names is stored.
    pub fn store_as(&mut self, value: ValueId, stored: Option<QuantFormat>) {
        if let Op::Param(n) = self.graph.node(value).op {
            self.graph.params[n as usize].stored = stored;
        }
    }

    /// Adds a node whose type is inferred: floats take the type of the first operand.
    ///
    /// # Errors
    /// Those of [`infer_type`].
    pub fn node(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<ValueId, Diagnostic> {
        self.node_as(name, op, inputs, None)
    }

    /// As [`GraphBuilder::node`], with the element type of the result given: its rounding point.
    ///
    /// # Errors
    /// Those of [`infer_type`].
    pub fn node_as(
        &mut self,
        name: &str,
        op: Op,
        inputs: &[ValueId],
        dtype: Option<crate::DType>,
    ) -> Result<ValueId, Diagnostic> {
        let types: Vec<&TensorType> = inputs.iter().map(|&v| self.graph.ty(v)).collect();
        let names: Vec<&str> = inputs.iter().map(|&v| self.graph.node(v).name.as_str()).collect();
        let mut ty = infer_type(name, &op, &types, &names).map_err(|d| d.at(self.origin.clone()))?;
        if let Some(dtype) = dtype.filter(|_| ty.dtype.is_float()) {
            ty.dtype = dtype;
        }
        Ok(self.push(name.to_string(), op, inputs.to_vec(), ty))
    }

    /// The node that computes `op` of these operands, if there is one already.
    pub fn find(&self, op: &Op, inputs: &[ValueId]) -> Option<ValueId> {
        let same = |n: &Node| n.op == *op && n.inputs == inputs;
        self.graph.nodes.iter().position(same).map(|i| ValueId(i as u32))
    }

    /// Names a result.
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.graph.outputs.push((name.to_string(), value));
    }

    /// The type of a value so far.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        self.graph.ty(value)
    }

    /// The name of a value.
    pub fn name(&self, value: ValueId) -> &str {
        &self.graph.node(value).name
    }

    /// The graph.
    pub fn finish(self) -> Graph {
        self.graph
    }

    fn push(&mut self, name: String, op: Op, inputs: Vec<ValueId>, ty: TensorType) -> ValueId {
        let name = self.unique(name);
        self.graph.nodes.push(Node { name, op, inputs, ty, origin: self.origin.clone() });
        ValueId(self.graph.nodes.len() as u32 - 1)
    }

    fn unique(&self, name: String) -> String {
        let taken = |n: &str| self.graph.nodes.iter().any(|node| node.name == n);
        if !taken(&name) {
            return name;
        }
        (2u32..).map(|i| format!("{name}.{i}")).find(|n| !taken(n)).unwrap_or(name)
    }
}
