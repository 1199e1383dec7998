//! The operators and functions that are compiled, by object identifier.
//!
//! Objects below 16384 are the same in every database of a major version; what is not listed here
//! is refused.

use crate::datum::{Type, Types, UserType};
use crate::mutant::PolicyMutant;
use crate::pg::Oid;
use crate::policy::expr::{
    Arithmetic, ArrayFunction, Comparison, Expr, Function, JsonbFunction, TextFunction,
};

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
const TEXTS: u32 = 1009;
const ANYARRAY: u32 = 2277;

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
    ([1070, 1071, 0, 0, 0, 0], ANYARRAY, ANYARRAY),
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
    /// Equality of elements: where there is one, it must be deterministic.
    Elements,
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
    /// Whether what is compared is `lower` of the operands.
    pub(super) folded: bool,
}

impl Compared {
    /// What is compared of an operand.
    pub(super) fn of(&self, operand: Expr) -> Expr {
        let null = operand == Expr::NULL;
        if self.folded && !null && !PolicyMutant::CitextIsText.active() {
            return Expr::Call(Function::Lower(false), vec![operand]);
        }
        operand
    }
}

/// The same of a type that an extension made.
pub(super) fn comparison_of(operator: Oid, types: &Types) -> Option<Compared> {
    types.user.iter().find_map(|(oid, ty)| {
        let UserType::Citext { equal, unequal } = ty else {
            return None;
        };
        let comparison = match operator {
            known if known == *equal => Comparison::Eq,
            known if known == *unequal => Comparison::Ne,
            _ => return None,
        };
        Some(Compared {
            comparison,
            left: *oid,
            right: *oid,
            demand: Demand::Case,
            folded: true,
        })
    })
}

pub(super) fn comparison(operator: Oid) -> Option<Compared> {
    COMPARISONS.iter().find_map(|(operators, left, right)| {
        let mut known = operators.iter().zip(ORDER);
        let (_, comparison) = known.find(|(known, _)| **known == operator.0 && **known != 0)?;
        let textual = [TEXT, NAME, BPCHAR].contains(left);
        let demand = match comparison {
            _ if *left == ANYARRAY => Demand::Elements,
            _ if !textual => Demand::None,
            Comparison::Eq | Comparison::Ne => Demand::Deterministic,
            _ => Demand::Bytewise,
        };
        Some(Compared {
            comparison,
            left: Oid(*left),
            right: Oid(*right),
            demand,
            folded: false,
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
        3246 => (
            Function::Jsonb(JsonbFunction::Contains),
            &[JSONB, JSONB],
            BOOL,
        ),
        3250 => (
            Function::Jsonb(JsonbFunction::Contained),
            &[JSONB, JSONB],
            BOOL,
        ),
        3248 => (
            Function::Jsonb(JsonbFunction::HasAny),
            &[JSONB, TEXTS],
            BOOL,
        ),
        3249 => (
            Function::Jsonb(JsonbFunction::HasAll),
            &[JSONB, TEXTS],
            BOOL,
        ),
        1627 => (
            Function::Text(TextFunction::Insensitive(false)),
            &[TEXT, TEXT],
            BOOL,
        ),
        1628 => (
            Function::Text(TextFunction::Insensitive(true)),
            &[TEXT, TEXT],
            BOOL,
        ),
        3877 => (Function::Text(TextFunction::Starts), &[TEXT, TEXT], BOOL),
        654 => (Function::Concat, &[TEXT, TEXT], TEXT),
        1209 => (Function::Like, &[TEXT, TEXT], BOOL),
        1210 => (Function::NotLike, &[TEXT, TEXT], BOOL),
        other => return arithmetic(other),
    };
    let like = matches!(function, Function::Like | Function::NotLike);
    let function_demand = demanded(&function);
    Some(BuiltIn {
        function,
        args,
        result: Oid(result),
        demand: match function_demand {
            Some(demand) => demand,
            None if like => Demand::Deterministic,
            None => Demand::None,
        },
    })
}

fn demanded(function: &Function) -> Option<Demand> {
    match function {
        Function::Text(TextFunction::Insensitive(_)) => Some(Demand::Case),
        Function::Text(_) => Some(Demand::Deterministic),
        _ => None,
    }
}

/// The functions of text.
fn text(function: u32) -> Option<BuiltIn> {
    const ONE: &[u32] = &[TEXT];
    const TWO: &[u32] = &[TEXT, TEXT];
    const NUMBER: &[u32] = &[TEXT, INT4];
    let (function, args, result) = match function {
        1317 | 1369 | 1381 => (TextFunction::Length, ONE, INT4),
        885 => (TextFunction::Trim(true, true), ONE, TEXT),
        881 => (TextFunction::Trim(true, false), ONE, TEXT),
        882 => (TextFunction::Trim(false, true), ONE, TEXT),
        884 => (TextFunction::Trim(true, true), TWO, TEXT),
        875 => (TextFunction::Trim(true, false), TWO, TEXT),
        876 => (TextFunction::Trim(false, true), TWO, TEXT),
        883 | 937 => (TextFunction::Substring, NUMBER, TEXT),
        877 | 936 => (TextFunction::Substring, &[TEXT, INT4, INT4] as &[u32], TEXT),
        3060 => (TextFunction::Left, NUMBER, TEXT),
        3061 => (TextFunction::Right, NUMBER, TEXT),
        868 | 849 => (TextFunction::Position, TWO, INT4),
        3696 => (TextFunction::Starts, TWO, BOOL),
        2087 => (TextFunction::Replace, &[TEXT, TEXT, TEXT] as &[u32], TEXT),
        2088 => (TextFunction::Part, &[TEXT, TEXT, INT4] as &[u32], TEXT),
        3062 => (TextFunction::Reverse, ONE, TEXT),
        _ => return None,
    };
    Some(BuiltIn {
        function: Function::Text(function),
        args,
        result: Oid(result),
        demand: Demand::Deterministic,
    })
}

/// The operators of integers.
fn arithmetic(operator: u32) -> Option<BuiltIn> {
    let of = |small: u32| match small {
        INT2 => (i64::from(i16::MIN), i64::from(i16::MAX)),
        INT4 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        _ => (i64::MIN, i64::MAX),
    };
    ARITHMETIC.iter().find_map(|(operators, args, result)| {
        let at = operators
            .iter()
            .position(|known| *known == operator && *known != 0)?;
        let op = [
            Arithmetic::Add,
            Arithmetic::Subtract,
            Arithmetic::Multiply,
            Arithmetic::Divide,
            Arithmetic::Remainder,
        ];
        let (least, most) = of(*result);
        Some(BuiltIn {
            function: Function::Arithmetic(*op.get(at)?, least, most),
            args,
            result: Oid(*result),
            demand: Demand::None,
        })
    })
}

/// `+`, `-`, `*`, `/`, `%`, their operands and their result.
const ARITHMETIC: &[([u32; 5], &[u32], u32)] = &[
    ([550, 554, 526, 527, 529], &[INT2, INT2], INT2),
    ([551, 555, 514, 528, 530], &[INT4, INT4], INT4),
    ([684, 685, 686, 687, 439], &[INT8, INT8], INT8),
    ([552, 556, 544, 546, 0], &[INT2, INT4], INT4),
    ([553, 557, 545, 547, 0], &[INT4, INT2], INT4),
    ([822, 823, 824, 825, 0], &[INT2, INT8], INT8),
    ([818, 819, 820, 821, 0], &[INT8, INT2], INT8),
    ([692, 693, 694, 695, 0], &[INT4, INT8], INT8),
    ([688, 689, 690, 691, 0], &[INT8, INT4], INT8),
];

/// The operators of arrays of any type.
pub(super) const fn array_operator(operator: Oid) -> Option<ArrayFunction> {
    Some(match operator.0 {
        2751 => ArrayFunction::Contains,
        2752 => ArrayFunction::Contained,
        2750 => ArrayFunction::Overlaps,
        349 => ArrayFunction::Append,
        374 => ArrayFunction::Prepend,
        375 => ArrayFunction::Concat,
        _ => return None,
    })
}

/// The functions of arrays of any type.
pub(super) const fn array_function(function: Oid) -> Option<ArrayFunction> {
    Some(match function.0 {
        2748 => ArrayFunction::Contains,
        2749 => ArrayFunction::Contained,
        2747 => ArrayFunction::Overlaps,
        2176 => ArrayFunction::Length,
        2091 => ArrayFunction::Lower,
        2092 => ArrayFunction::Upper,
        3179 => ArrayFunction::Cardinality,
        748 => ArrayFunction::Dimensions,
        378 => ArrayFunction::Append,
        379 => ArrayFunction::Prepend,
        383 => ArrayFunction::Concat,
        3167 => ArrayFunction::Remove,
        3277 => ArrayFunction::Position,
        395 => ArrayFunction::Join,
        _ => return None,
    })
}

/// The functions that take operands of any type, by their text or as JSON.
pub(super) const fn any_function(function: Oid) -> Option<Function> {
    Some(match function.0 {
        3058 => Function::Text(TextFunction::Concat),
        3787 => Function::Jsonb(JsonbFunction::Make),
        3271 | 3272 => Function::Jsonb(JsonbFunction::Array),
        3273 | 3274 => Function::Jsonb(JsonbFunction::Object),
        _ => return None,
    })
}

/// `jsonb_extract_path` (false) and `jsonb_extract_path_text` (true).
pub(super) const fn path_function(function: Oid) -> Option<bool> {
    match function.0 {
        3217 => Some(false),
        3940 => Some(true),
        _ => None,
    }
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
        4046 => (
            Function::Jsonb(JsonbFunction::Contains),
            &[JSONB, JSONB],
            BOOL,
        ),
        4050 => (
            Function::Jsonb(JsonbFunction::Contained),
            &[JSONB, JSONB],
            BOOL,
        ),
        4048 => (
            Function::Jsonb(JsonbFunction::HasAny),
            &[JSONB, TEXTS],
            BOOL,
        ),
        4049 => (
            Function::Jsonb(JsonbFunction::HasAll),
            &[JSONB, TEXTS],
            BOOL,
        ),
        3207 => (Function::Jsonb(JsonbFunction::Length), &[JSONB], INT4),
        394 => (Function::Array(ArrayFunction::Split), &[TEXT, TEXT], TEXTS),
        other => return text(other),
    };
    let demand = match computed {
        Function::Lower(_) | Function::Upper(_) => Demand::Case,
        Function::Array(_) => Demand::Deterministic,
        _ => Demand::None,
    };
    Some(BuiltIn {
        function: computed,
        args,
        result: Oid(result),
        demand,
    })
}
