//! Lane-wise functions as plain function pointers.

/// `|a| expression` over 32 lanes.
macro_rules! map1 {
    (|$a:ident| $e:expr) => {
        (|a: &crate::exec::program::Lanes, d: &mut crate::exec::program::Lanes| {
            for i in 0..32 {
                let $a = a[i];
                d[i] = $e;
            }
        }) as crate::exec::program::Map1
    };
}

/// `|a, b| expression` over 32 lanes.
macro_rules! map2 {
    (|$a:ident, $b:ident| $e:expr) => {
        (|a: &crate::exec::program::Lanes, b: &crate::exec::program::Lanes, d: &mut crate::exec::program::Lanes| {
            for i in 0..32 {
                let $a = a[i];
                let $b = b[i];
                d[i] = $e;
            }
        }) as crate::exec::program::Map2
    };
}

/// `|a, b, c| expression` over 32 lanes.
macro_rules! map3 {
    (|$a:ident, $b:ident, $c:ident| $e:expr) => {
        (|a: &crate::exec::program::Lanes,
          b: &crate::exec::program::Lanes,
          c: &crate::exec::program::Lanes,
          d: &mut crate::exec::program::Lanes| {
            for i in 0..32 {
                let $a = a[i];
                let $b = b[i];
                let $c = c[i];
                d[i] = $e;
            }
        }) as crate::exec::program::Map3
    };
}

/// `|a, b| condition` over 32 lanes, as a mask.
macro_rules! compare {
    (|$a:ident, $b:ident| $e:expr) => {
        (|a: &crate::exec::program::Lanes, b: &crate::exec::program::Lanes| {
            let mut mask = 0u32;
            for i in 0..32 {
                let $a = a[i];
                let $b = b[i];
                mask |= u32::from($e) << i;
            }
            mask
        }) as crate::exec::program::Compare
    };
}

/// The same expression for the unsigned and signed types of a width; `None` for other widths.
macro_rules! by_width {
    ($bits:expr, $U:ident, $S:ident => $body:expr) => {
        match $bits {
            16 => {
                #[allow(dead_code)]
                type $U = u16;
                #[allow(dead_code)]
                type $S = i16;
                Some($body)
            }
            32 => {
                #[allow(dead_code)]
                type $U = u32;
                #[allow(dead_code)]
                type $S = i32;
                Some($body)
            }
            64 => {
                #[allow(dead_code)]
                type $U = u64;
                #[allow(dead_code)]
                type $S = i64;
                Some($body)
            }
            _ => None,
        }
    };
}

pub(crate) use {by_width, compare, map1, map2, map3};
