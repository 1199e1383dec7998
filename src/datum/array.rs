//! Arrays, and their text form as `array_out` writes it.

use std::collections::HashSet;

use super::{Datum, Trouble};

/// PostgreSQL's `MAXDIM`.
const MAX_DIMENSIONS: usize = 6;

/// Where elements are looked for among more than this, they are hashed first.
const FEW: usize = 16;

/// An array. `==` is PostgreSQL's `=`: bounds count, and NULL equals NULL.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Array {
    /// Lower bound and length of each dimension; of an empty array there are none.
    dimensions: Box<[(i32, usize)]>,
    /// In the order of storage: the last subscript varies fastest.
    elements: Box<[Option<Datum>]>,
}

impl Array {
    /// An array of one dimension, from 1; the empty one where there are no elements.
    #[must_use]
    pub fn new(elements: Vec<Option<Datum>>) -> Self {
        Self::from(1, elements)
    }

    fn from(lower: i32, elements: Vec<Option<Datum>>) -> Self {
        let dimensions: &[(i32, usize)] = match elements.len() {
            0 => &[],
            length => &[(lower, length)],
        };
        Self {
            dimensions: dimensions.into(),
            elements: elements.into(),
        }
    }

    /// An array of several dimensions; `None` where there are not as many elements as these say.
    #[must_use]
    pub fn with(dimensions: Vec<(i32, usize)>, elements: Vec<Option<Datum>>) -> Option<Self> {
        let all = dimensions
            .iter()
            .try_fold(1_usize, |all, (_, length)| all.checked_mul(*length))?;
        let fits = dimensions.len() <= MAX_DIMENSIONS
            && if dimensions.is_empty() {
                elements.is_empty()
            } else {
                all > 0 && all == elements.len()
            };
        fits.then(|| Self {
            dimensions: dimensions.into(),
            elements: elements.into(),
        })
    }

    /// Reads the text form, its elements by `element`.
    ///
    /// # Errors
    /// [`Trouble::Undecided`] for what `array_out` would not write, or what `element` says.
    pub fn parse(
        text: &str,
        element: &mut dyn FnMut(&str) -> Result<Datum, Trouble>,
    ) -> Result<Self, Trouble> {
        let mut parser = Parser {
            rest: text,
            element,
            lengths: Vec::new(),
            elements: Vec::new(),
        };
        let bounds = parser.bounds()?;
        parser.braces(0)?;
        if !parser.rest.is_empty() {
            return Err(Trouble::Undecided);
        }
        let lengths = parser.lengths;
        let dimensions = match &bounds {
            None => lengths.iter().map(|length| (1, *length)).collect(),
            Some(bounds) => {
                let said = bounds.iter().map(|(_, length)| length);
                if !said.eq(&lengths) {
                    return Err(Trouble::Undecided);
                }
                bounds.clone()
            }
        };
        Self::with(dimensions, parser.elements).ok_or(Trouble::Undecided)
    }

    /// The text form; `None` where that of an element depends on settings.
    #[must_use]
    pub fn output(&self) -> Option<String> {
        let mut text = String::new();
        if self.dimensions.iter().any(|(lower, _)| *lower != 1) {
            for (lower, length) in &self.dimensions {
                let length = i64::try_from(*length).ok()?;
                let upper = i64::from(*lower) + length - 1;
                text.push_str(&format!("[{lower}:{upper}]"));
            }
            text.push('=');
        }
        if self.elements.is_empty() {
            text.push_str("{}");
        } else {
            write(&self.dimensions, &self.elements, &mut text)?;
        }
        Some(text)
    }

    /// The elements of all dimensions.
    #[must_use]
    pub fn elements(&self) -> &[Option<Datum>] {
        &self.elements
    }

    /// How many dimensions there are.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        self.dimensions.len()
    }

    /// Lower and upper bound of a dimension, counted from 1.
    #[must_use]
    pub fn bounds(&self, dimension: i64) -> Option<(i64, i64)> {
        let at = usize::try_from(dimension).ok()?.checked_sub(1)?;
        let (lower, length) = self.dimensions.get(at)?;
        let lower = i64::from(*lower);
        Some((lower, lower + i64::try_from(*length).ok()? - 1))
    }

    /// `array[index]`: NULL beyond the bounds, and where there are several dimensions.
    #[must_use]
    pub fn element(&self, index: i64) -> Option<&Datum> {
        let [(lower, _)] = &*self.dimensions else {
            return None;
        };
        let at = index.checked_sub(i64::from(*lower))?;
        self.elements.get(usize::try_from(at).ok()?)?.as_ref()
    }

    /// `array[lower:upper]`, either bound left out or not.
    ///
    /// # Errors
    /// [`Trouble::Undecided`] for several dimensions.
    pub fn slice(&self, lower: Option<i64>, upper: Option<i64>) -> Result<Self, Trouble> {
        let Some((first, last)) = self.bounds(1) else {
            return Ok(Self::new(Vec::new()));
        };
        if self.dimensions.len() > 1 {
            return Err(Trouble::Undecided);
        }
        let lower = lower.map_or(first, |lower| lower.max(first));
        let upper = upper.map_or(last, |upper| upper.min(last));
        let skipped = usize::try_from(lower - first).unwrap_or(usize::MAX);
        let taken = usize::try_from(upper.saturating_sub(lower).saturating_add(1)).unwrap_or(0);
        let elements = self.elements.iter().skip(skipped).take(taken);
        Ok(Self::new(elements.cloned().collect()))
    }

    /// `@>`: whether every element of the other is among these; NULL is never.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        let among = self.among();
        let mut elements = other.elements.iter();
        elements.all(|one| one.as_ref().is_some_and(&among))
    }

    /// `&&`: whether an element of the other is among these.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let among = self.among();
        other.elements.iter().flatten().any(among)
    }

    fn among(&self) -> impl Fn(&Datum) -> bool {
        let hashed: Option<HashSet<&Datum>> =
            (self.elements.len() > FEW).then(|| self.elements.iter().flatten().collect());
        move |one| match &hashed {
            Some(hashed) => hashed.contains(one),
            None => self.elements.iter().flatten().any(|own| own == one),
        }
    }

    /// `array_append`.
    ///
    /// # Errors
    /// [`Trouble::Error`] for several dimensions.
    pub fn append(&self, one: Option<Datum>) -> Result<Self, Trouble> {
        let mut elements = self.flat()?.to_vec();
        elements.push(one);
        Ok(Self::from(self.lower(), elements))
    }

    /// `array_prepend`.
    ///
    /// # Errors
    /// [`Trouble::Error`] for several dimensions.
    pub fn prepend(&self, one: Option<Datum>) -> Result<Self, Trouble> {
        let mut elements = vec![one];
        elements.extend_from_slice(self.flat()?);
        Ok(Self::from(self.lower(), elements))
    }

    /// `array_remove`.
    ///
    /// # Errors
    /// [`Trouble::Error`] for several dimensions.
    pub fn without(&self, one: Option<&Datum>) -> Result<Self, Trouble> {
        let kept = self.flat()?.iter().filter(|own| own.as_ref() != one);
        Ok(Self::from(self.lower(), kept.cloned().collect()))
    }

    /// `array_cat`.
    ///
    /// # Errors
    /// [`Trouble::Undecided`] for several dimensions.
    pub fn concat(&self, other: &Self) -> Result<Self, Trouble> {
        if self.dimensions.is_empty() {
            return Ok(other.clone());
        }
        if other.dimensions.is_empty() {
            return Ok(self.clone());
        }
        if self.dimensions.len() > 1 || other.dimensions.len() > 1 {
            return Err(Trouble::Undecided);
        }
        let elements = [&*self.elements, &*other.elements].concat();
        Ok(Self::from(self.lower(), elements))
    }

    /// `array_position`: the subscript of the first that is not distinct from the value.
    ///
    /// # Errors
    /// [`Trouble::Error`] for several dimensions.
    pub fn position(&self, of: Option<&Datum>) -> Result<Option<i64>, Trouble> {
        let mut elements = self.flat()?.iter();
        let at = elements.position(|own| own.as_ref() == of);
        let at = at.and_then(|at| i64::try_from(at).ok());
        Ok(at.map(|at| i64::from(self.lower()) + at))
    }

    /// The array with each element that is not NULL replaced.
    ///
    /// # Errors
    /// With the weightiest trouble of an element.
    pub fn map(
        &self,
        mut each: impl FnMut(&Datum) -> Result<Option<Datum>, Trouble>,
    ) -> Result<Self, Trouble> {
        let mut trouble = None;
        let mut elements = Vec::with_capacity(self.elements.len());
        for one in &self.elements {
            match one.as_ref().map_or(Ok(None), &mut each) {
                Ok(made) => elements.push(made),
                Err(met) => trouble = trouble.max(Some(met)),
            }
        }
        match trouble {
            Some(trouble) => Err(trouble),
            None => Ok(Self {
                dimensions: self.dimensions.clone(),
                elements: elements.into(),
            }),
        }
    }

    /// See [`Datum::identical`].
    #[must_use]
    pub fn identical(&self, other: &Self) -> bool {
        let mut pairs = self.elements.iter().zip(&other.elements);
        self.dimensions == other.dimensions
            && pairs.all(|two| match two {
                (Some(a), Some(b)) => a.identical(b),
                (a, b) => a.is_none() && b.is_none(),
            })
    }

    fn lower(&self) -> i32 {
        self.dimensions.first().map_or(1, |(lower, _)| *lower)
    }

    fn flat(&self) -> Result<&[Option<Datum>], Trouble> {
        if self.dimensions.len() > 1 {
            return Err(Trouble::Error);
        }
        Ok(&self.elements)
    }
}

fn write(dimensions: &[(i32, usize)], elements: &[Option<Datum>], text: &mut String) -> Option<()> {
    text.push('{');
    if let [_] | [] = dimensions {
        for (index, element) in elements.iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            match element {
                None => text.push_str("NULL"),
                Some(datum) => quote(&datum.output()?, text),
            }
        }
    } else if let [(_, length), inner @ ..] = dimensions {
        for (index, part) in elements
            .chunks(elements.len() / (*length).max(1))
            .enumerate()
        {
            if index > 0 {
                text.push(',');
            }
            write(inner, part, text)?;
        }
    }
    text.push('}');
    Some(())
}

const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C)
}

fn quote(element: &str, text: &mut String) {
    let special = |byte: u8| matches!(byte, b'"' | b'\\' | b'{' | b'}' | b',') || is_space(byte);
    if !element.is_empty() && !element.eq_ignore_ascii_case("null") && !element.bytes().any(special)
    {
        text.push_str(element);
        return;
    }
    text.push('"');
    for character in element.chars() {
        if matches!(character, '"' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text.push('"');
}

struct Parser<'t, 'e> {
    rest: &'t str,
    element: &'e mut dyn FnMut(&str) -> Result<Datum, Trouble>,
    /// Of each dimension, from the outermost, as soon as one of it is closed.
    lengths: Vec<usize>,
    elements: Vec<Option<Datum>>,
}

impl Parser<'_, '_> {
    fn take(&mut self, wanted: char) -> bool {
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn demand(&mut self, wanted: char) -> Result<(), Trouble> {
        if self.take(wanted) {
            Ok(())
        } else {
            Err(Trouble::Undecided)
        }
    }

    /// `[lower:upper]…=`, where there is one.
    fn bounds(&mut self) -> Result<Option<Vec<(i32, usize)>>, Trouble> {
        const ODD: Trouble = Trouble::Undecided;
        let mut bounds = Vec::new();
        while self.take('[') {
            let (lower, rest) = self.rest.split_once(':').ok_or(ODD)?;
            let (upper, rest) = rest.split_once(']').ok_or(ODD)?;
            let lower: i32 = lower.parse().map_err(|_| ODD)?;
            let upper: i32 = upper.parse().map_err(|_| ODD)?;
            let length = i64::from(upper) - i64::from(lower) + 1;
            bounds.push((lower, usize::try_from(length).map_err(|_| ODD)?));
            self.rest = rest;
            if bounds.len() > MAX_DIMENSIONS {
                return Err(ODD);
            }
        }
        if bounds.is_empty() {
            return Ok(None);
        }
        self.demand('=')?;
        Ok(Some(bounds))
    }

    fn braces(&mut self, depth: usize) -> Result<(), Trouble> {
        if depth >= MAX_DIMENSIONS {
            return Err(Trouble::Undecided);
        }
        self.demand('{')?;
        if depth == 0 && self.take('}') {
            return Ok(());
        }
        if self.lengths.len() <= depth {
            // All elements lie as deep as the first.
            if !self.elements.is_empty() {
                return Err(Trouble::Undecided);
            }
            self.lengths.push(0);
        }
        let mut length = 0;
        loop {
            if self.rest.starts_with('{') {
                self.braces(depth + 1)?;
            } else if self.lengths.len() > depth + 1 {
                return Err(Trouble::Undecided);
            } else {
                let element = self.item()?;
                self.elements.push(element);
            }
            length += 1;
            if self.take(',') {
                continue;
            }
            self.demand('}')?;
            break;
        }
        match self.lengths.get_mut(depth) {
            Some(known) if *known == 0 || *known == length => *known = length,
            _ => return Err(Trouble::Undecided),
        }
        Ok(())
    }

    fn item(&mut self) -> Result<Option<Datum>, Trouble> {
        if self.take('"') {
            let mut value = String::new();
            loop {
                let end = self.rest.find(['"', '\\']).ok_or(Trouble::Undecided)?;
                let (plain, rest) = self.rest.split_at(end);
                value.push_str(plain);
                self.rest = rest;
                if self.take('"') {
                    return (self.element)(&value).map(Some);
                }
                self.demand('\\')?;
                let mut characters = self.rest.chars();
                value.push(characters.next().ok_or(Trouble::Undecided)?);
                self.rest = characters.as_str();
            }
        }
        let end = self.rest.find([',', '}']).ok_or(Trouble::Undecided)?;
        let (plain, rest) = self.rest.split_at(end);
        let odd = |byte: u8| matches!(byte, b'{' | b'"' | b'\\') || is_space(byte);
        if plain.is_empty() || plain.bytes().any(odd) {
            return Err(Trouble::Undecided);
        }
        self.rest = rest;
        if plain.eq_ignore_ascii_case("null") {
            return Ok(None);
        }
        (self.element)(plain).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datum::{Collation, Type};
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Array, Trouble> {
        Array::parse(text, &mut |element| {
            Datum::from_output(&Type::Text(Collation::C), element)
        })
    }

    #[test]
    fn the_text_form_is_array_outs_and_nothing_else_is_read() {
        for text in [
            "{}",
            "{a,b}",
            "{NULL,\"NULL\",\"\"}",
            r#"{"a,b","c\"d","e\\f","{}"," "}"#,
            "{{a,b},{c,NULL}}",
            "[0:1]={a,b}",
            "[2:2][-1:0]={{a,b}}",
        ] {
            assert_eq!(read(text).unwrap().output().as_deref(), Some(text));
        }
        for odd in [
            "",
            "{",
            "}",
            "{a",
            "{a,}",
            "{,a}",
            "{a}}",
            "{ a}",
            "{a b}",
            "{{}}",
            "{{a},b}",
            "{a,{b}}",
            "{{a},{{b}}}",
            "{{a},{b,c}}",
            "[1:3]={a}",
            "[1:0]={}",
            "[1:1]{a}",
            "{a\\b}",
            "{\"a}",
            "a",
            "{{{{{{{a}}}}}}}",
        ] {
            assert_eq!(read(odd).err(), Some(Trouble::Undecided), "{odd}");
        }
    }

    #[test]
    fn bounds_count_and_null_equals_null_but_is_in_nothing() {
        assert!(read("[0:1]={1,2}") != read("{1,2}"));
        assert!(read("{NULL}") == read("{NULL}"));
        let (some, null) = (read("{a,NULL}").unwrap(), read("{NULL}").unwrap());
        assert!(!some.contains(&null) && !some.overlaps(&null));
        assert!(some.contains(&read("{}").unwrap()));
        assert!(some.overlaps(&read("{b,a}").unwrap()));
    }

    #[test]
    fn subscripts_beyond_the_bounds_find_nothing() {
        let array = read("[0:2]={a,b,c}").unwrap();
        assert!(array.element(0) == Some(&Datum::text("a")) && array.element(3).is_none());
        let cut = |lower, upper| array.slice(lower, upper).unwrap().output().unwrap();
        assert_eq!(cut(Some(1), None), "{b,c}");
        assert_eq!(cut(None, Some(0)), "{a}");
        assert_eq!(cut(Some(2), Some(1)), "{}");
        assert_eq!(cut(Some(i64::MIN), Some(i64::MAX)), "{a,b,c}");
        assert!(read("{{a}}").unwrap().element(1).is_none());
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_is_written_alike(
            text in r#"(\[[0-9:-]{1,5}\]=)?[{}",\\aN ULé]{0,24}"#
        ) {
            if let Ok(array) = read(&text) {
                let written = array.output().unwrap();
                prop_assert!(read(&written).unwrap() == array);
            }
        }
    }
}
