//! A line diff of two texts: lines removed and lines added, with one line of context.

/// The differing lines, marked `-` and `+`, with one equal line before and after, marked with a blank.
pub(super) fn lines(old: &str, new: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let marked = compare(&old, &new);
    let near = |at: usize| {
        let from = at.saturating_sub(1);
        marked.iter().skip(from).take(at - from + 2).any(|(mark, _)| *mark != ' ')
    };
    let shown = marked.iter().enumerate().filter(|(at, _)| near(*at));
    shown.map(|(_, (mark, line))| format!("{mark} {line}").trim_end().to_owned()).collect()
}

/// Compares by the longest common subsequence. The quadratic cost is acceptable because scripts are short.
fn compare<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(char, &'a str)> {
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for (i, left) in old.iter().enumerate().rev() {
        for (j, right) in new.iter().enumerate().rev() {
            let longest =
                if left == right { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
            common[i][j] = longest;
        }
    }
    let (mut i, mut j, mut marked) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            marked.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            marked.push(('-', old[i]));
            i += 1;
        } else {
            marked.push(('+', new[j]));
            j += 1;
        }
    }
    marked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_shown_with_a_line_around() {
        let (old, new) = ("a\nb\nc\nd\ne\nf", "a\nb\nC\nd\ne\nf\ng");
        assert_eq!(lines(old, new), ["  b", "- c", "+ C", "  d", "  f", "+ g"]);
        assert_eq!(lines("a", "a"), Vec::<String>::new());
        assert_eq!(lines("", "a"), ["+ a"]);
        assert_eq!(lines("a", ""), ["- a"]);
    }
}
