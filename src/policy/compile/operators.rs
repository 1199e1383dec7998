//! The operators and functions that are compiled, by object identifier.
//!
//! Objects below 16384 are the same in every database of a major version; what is not listed here
//! is refused.

use crate::datum::Type;
use crate::pg::Oid;
use crate::policy::expr::{Comparison, Function};

const BOOL: u32 = 16;
const NAME: u32 = 19;
const INT8: u32 = 20;
const INT2: u32 = 21;
const INT4: u32 = 23;
const TEXT: u32 = 25;
const JSON: u32 = 114;
const FLOAT4: u32 = 700;
const FLOAT8: u32 = 701;
const BPCHAR: u32 = 1042;
const NUMERIC: u32 = 1700;
const ANYENUM: u32 = 3500;
const JSONB: u32 = 3802;

/// `=`, `<>`, `<`, `<=`, `>`, `>=` (0 where the order is not native) and the operand types.
const COMPARISONS: &[([u32; 6], u32, u32)] = &[
    ([91, 85, 58, 1694, 59, 1695], BOOL, BOOL),
    ([1955, 1956, 1957, 1958, 1959, 1960], 17, 17),
    ([93, 643, 660, 661, 662, 663], NAME, NAME),
    ([254, 259, 255, 256, 258, 257], NAME, TEXT),
    ([260, 265, 261, 262, 264, 263], TEXT, NAME),
    ([410, 411, 412, 414, 413, 415], INT8, INT8),
    ([1868, 1869, 1870, 1872, 1871, 1873], INT8, INT2),
    ([416, 417, 418, 420, 419, 430], INT8, INT4),
    ([1862, 1863, 1864, 1866, 1865, 1867], INT2, INT8),
    ([94, 519, 95, 522, 520, 524], INT2, INT2),
    ([532, 538, 534, 540, 536, 542], INT2, INT4),
    ([15, 36, 37, 80, 76, 82], INT4, INT8),
    ([533, 539, 535, 541, 537, 543], INT4, INT2),
    ([96, 518, 97, 523, 521, 525], INT4, INT4),
    ([98, 531, 664, 665, 666, 667], TEXT, TEXT),
    ([607, 608, 609, 611, 610, 612], 26, 26),
    ([620, 621, 622, 624, 623, 625], FLOAT4, FLOAT4),
    ([1120, 1121, 1122, 1124, 1123, 1125], FLOAT4, FLOAT8),
    ([1130, 1131, 1132, 1134, 1133, 1135], FLOAT8, FLOAT4),
    ([670, 671, 672, 673, 674, 675], FLOAT8, FLOAT8),
    ([1054, 1057, 1058, 1059, 1060, 1061], BPCHAR, BPCHAR),
    ([1093, 1094, 1095, 1096, 1097, 1098], 1082, 1082),
    ([2060, 2061, 2062, 2063, 2064, 2065], 1114, 1114),
    ([1320, 1321, 1322, 1323, 1324, 1325], 1184, 1184),
    ([1752, 1753, 1754, 1755, 1756, 1757], NUMERIC, NUMERIC),
    ([2972, 2973, 2974, 2976, 2975, 2977], 2950, 2950),
    ([3516, 3517, 3518, 3520, 3519, 3521], ANYENUM, ANYENUM),
    ([3240, 3241, 0, 0, 0, 0], JSONB, JSONB),
];

const ORDER: [Comparison; 6] = [
    Comparison::Eq,
    Comparison::Ne,
    Comparison::Lt,
    Comparison::Le,
    Comparison::Gt,
    Comparison::Ge,
];

/// What a compiled operator or function does with the collation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Demand {
    /// Nothing.
    None,
    /// Equality: it must be deterministic.
    Deterministic,
    /// Order: it must be that of the bytes.
    Bytewise,
    /// `lower` and `upper`.
    Case,
}

/// A comparison and its operand types.
pub(super) struct Compared {
    pub(super) comparison: Comparison,
    pub(super) left: Oid,
    pub(super) right: Oid,
    pub(super) demand: Demand,
}

pub(super) fn comparison(operator: Oid) -> Option<Compared> {
    COMPARISONS.iter().find_map(|(operators, left, right)| {
        let mut known = operators.iter().zip(ORDER);
        let (_, comparison) = known.find(|(known, _)| **known == operator.0 && **known != 0)?;
        let textual = [TEXT, NAME, BPCHAR].contains(left);
        let demand = match comparison {
            _ if !textual => Demand::None,
            Comparison::Eq | Comparison::Ne => Demand::Deterministic,
            _ => Demand::Bytewise,
        };
        Some(Compared {
            comparison,
            left: Oid(*left),
            right: Oid(*right),
            demand,
        })
    })
}

/// A built-in function or operator that is computed natively.
pub(super) struct BuiltIn {
    pub(super) function: Function,
    pub(super) args: &'static [u32],
    pub(super) result: Oid,
    pub(super) demand: Demand,
}

/// The operators other than comparisons.
pub(super) fn operator(operator: Oid) -> Option<BuiltIn> {
    let (function, args, result): (_, &'static [u32], _) = match operator.0 {
        3211 => (Function::Get, &[JSONB, TEXT], JSONB),
        3212 => (Function::Get, &[JSONB, INT4], JSONB),
        3477 => (Function::GetText, &[JSONB, TEXT], TEXT),
        3481 => (Function::GetText, &[JSONB, INT4], TEXT),
        3962 => (Function::Get, &[JSON, TEXT], JSON),
        3964 => (Function::Get, &[JSON, INT4], JSON),
        3963 => (Function::GetText, &[JSON, TEXT], TEXT),
        3965 => (Function::GetText, &[JSON, INT4], TEXT),
        3247 => (Function::Has, &[JSONB, TEXT], BOOL),
        654 => (Function::Concat, &[TEXT, TEXT], TEXT),
        1209 => (Function::Like, &[TEXT, TEXT], BOOL),
        1210 => (Function::NotLike, &[TEXT, TEXT], BOOL),
        _ => return None,
    };
    let like = matches!(function, Function::Like | Function::NotLike);
    Some(BuiltIn {
        function,
        args,
        result: Oid(result),
        demand: if like {
            Demand::Deterministic
        } else {
            Demand::None
        },
    })
}

/// `#>` (false) and `#>>` (true), whose path must be a constant.
pub(super) const fn path_operator(operator: Oid) -> Option<bool> {
    match operator.0 {
        3213 => Some(false),
        3206 => Some(true),
        _ => None,
    }
}

/// The functions, as that major version has them.
pub(super) fn function(function: Oid, major: u16) -> Option<BuiltIn> {
    let null = major >= 18;
    const SMALL: Function = Function::Narrow(i16::MIN as i64, i16::MAX as i64);
    const MIDDLE: Function = Function::Narrow(i32::MIN as i64, i32::MAX as i64);
    const LARGE: Function = Function::Narrow(i64::MIN, i64::MAX);
    let (computed, args, result): (_, &'static [u32], _) = match function.0 {
        313 => (MIDDLE, &[INT2], INT4),
        480 => (MIDDLE, &[INT8], INT4),
        314 => (SMALL, &[INT4], INT2),
        714 => (SMALL, &[INT8], INT2),
        481 => (LARGE, &[INT4], INT8),
        754 => (LARGE, &[INT2], INT8),
        1740 => (Function::ToNumeric, &[INT4], NUMERIC),
        1781 => (Function::ToNumeric, &[INT8], NUMERIC),
        1782 => (Function::ToNumeric, &[INT2], NUMERIC),
        235 => (Function::ToFloat, &[INT2], FLOAT8),
        311 => (Function::ToFloat, &[FLOAT4], FLOAT8),
        316 => (Function::ToFloat, &[INT4], FLOAT8),
        1746 => (Function::ToFloat, &[NUMERIC], FLOAT8),
        482 => (Function::ToFloat, &[INT8], FLOAT8),
        2971 => (Function::ToText, &[BOOL], TEXT),
        401 => (Function::ToText, &[BPCHAR], TEXT),
        406 => (Function::ToText, &[NAME], TEXT),
        870 => (Function::Lower(false), &[TEXT], TEXT),
        871 => (Function::Upper(false), &[TEXT], TEXT),
        3210 => (Function::JsonbTypeof, &[JSONB], TEXT),
        3556 => (Function::Scalar(Type::Bool, null), &[JSONB], BOOL),
        3449 => (Function::Scalar(Type::Numeric, null), &[JSONB], NUMERIC),
        3450 => (Function::Scalar(Type::Int2, null), &[JSONB], INT2),
        3451 => (Function::Scalar(Type::Int4, null), &[JSONB], INT4),
        3452 => (Function::Scalar(Type::Int8, null), &[JSONB], INT8),
        3478 => (Function::Get, &[JSONB, TEXT], JSONB),
        3214 => (Function::GetText, &[JSONB, TEXT], TEXT),
        4047 => (Function::Has, &[JSONB, TEXT], BOOL),
        1258 => (Function::Concat, &[TEXT, TEXT], TEXT),
        _ => return None,
    };
    let demand = match computed {
        Function::Lower(_) | Function::Upper(_) => Demand::Case,
        _ => Demand::None,
    };
    Some(BuiltIn {
        function: computed,
        args,
        result: Oid(result),
        demand,
    })
}
