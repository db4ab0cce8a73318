//! The page around the charts.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::chart::curves_html;
use super::grid::encode_png;
use super::{Bars, Block, Fact, Figure, PictureRow, Report, Section, Table, Zoom};

const STYLE: &str = include_str!("style.css");

/// The whole page, self-contained: styles and charts inline, pictures as data URIs, no script, no
/// reference to anything outside. It is well-formed XML too.
pub fn render_html(report: &Report) -> String {
    let sections = || report.sections.iter().enumerate();
    let links: String = sections()
        .map(|(i, section)| format!("<a href=\"#section-{i}\">{}</a>\n", escape(&section.title)))
        .collect();
    format!(
        r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="color-scheme" content="light dark"/>
<title>{title}</title>
<style>
{STYLE}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{subtitle}</p>
<nav aria-label="Sections">
{links}</nav>
</header>
<main>
{sections}</main>
</body>
</html>
"#,
        title = escape(&report.title),
        subtitle = escape(&report.subtitle),
        sections = sections().map(|(i, section)| section_html(i, section)).collect::<String>(),
    )
}

/// `text` with the characters that HTML gives a meaning replaced.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(character),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

fn section_html(index: usize, section: &Section) -> String {
    let blocks: String = section.blocks.iter().map(block_html).collect();
    format!(
        "<section aria-labelledby=\"section-{index}\">\n<h2 id=\"section-{index}\">{}</h2>\n\
         {blocks}</section>\n",
        escape(&section.title)
    )
}

fn block_html(block: &Block) -> String {
    match block {
        Block::Text(text) => format!("<p>{}</p>\n", escape(text)),
        Block::Facts(facts) => facts_html(facts),
        Block::Figure(figure) => figure_html(figure),
        Block::Curves(curves) => curves_html(curves),
        Block::Bars(bars) => bars_html(bars),
        Block::Table(table) => table_html(table),
    }
}

fn facts_html(facts: &[Fact]) -> String {
    let entry = |fact: &Fact| {
        format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(&fact.name), escape(&fact.value))
    };
    format!("<dl class=\"facts\">\n{}</dl>\n", facts.iter().map(entry).collect::<String>())
}

fn figure_html(figure: &Figure) -> String {
    let columns = figure.rows.iter().map(|row| row.pictures.len()).max().unwrap_or(0).max(1);
    let pictures = figure.rows.iter().flat_map(|row| &row.pictures);
    let width = pictures.map(image::DynamicImage::width).max().unwrap_or(0);
    let zoom = match figure.zoom {
        Zoom::Smooth => "smooth",
        Zoom::Pixels => "pixels",
    };
    let rows: String = figure.rows.iter().map(row_html).collect();
    format!(
        "<figure class=\"pictures {zoom}\" style=\"--columns:{columns};--width:{width}px\">\n\
         <figcaption>{}</figcaption>\n{rows}</figure>\n",
        escape(&figure.caption)
    )
}

fn row_html(row: &PictureRow) -> String {
    let label = escape(&row.label);
    let picture = |(i, picture): (usize, &image::DynamicImage)| {
        format!(
            "<img src=\"data:image/png;base64,{}\" width=\"{}\" height=\"{}\" alt=\"{label} {}\"/>\n",
            STANDARD.encode(encode_png(picture)),
            picture.width(),
            picture.height(),
            i + 1
        )
    };
    let pictures: String = row.pictures.iter().enumerate().map(picture).collect();
    format!("<div class=\"row\"><span>{label}</span>\n<div>{pictures}</div></div>\n")
}

fn bars_html(bars: &Bars) -> String {
    let longest = bars.bars.iter().map(|bar| bar.value).filter(|value| value.is_finite());
    let longest = longest.fold(0.0, f64::max);
    let rows: String = bars
        .bars
        .iter()
        .map(|bar| {
            let share = if longest > 0.0 { bar.value / longest } else { 0.0 };
            let percent = if share.is_finite() { share.clamp(0.0, 1.0) * 100.0 } else { 0.0 };
            format!(
                "<div><dt>{}</dt><dd><i style=\"width:{percent:.2}%\"></i><span>{}</span></dd></div>\n",
                escape(&bar.label),
                escape(&bar.text)
            )
        })
        .collect();
    format!(
        "<figure class=\"bars\">\n<figcaption>{}</figcaption>\n<dl>\n{rows}</dl>\n</figure>\n",
        escape(&bars.caption)
    )
}

fn table_html(table: &Table) -> String {
    let columns = table.header.len();
    let number = |column: usize| {
        let mut cells = table.rows.iter().filter_map(|row| row.get(column)).peekable();
        cells.peek().is_some() && cells.all(|cell| is_number(cell))
    };
    let class: Vec<&str> =
        (0..columns).map(|column| if number(column) { " class=\"number\"" } else { "" }).collect();
    let header: String = (0..columns)
        .map(|i| format!("<th scope=\"col\"{}>{}</th>", class[i], escape(&table.header[i])))
        .collect();
    let row = |row: &Vec<String>| {
        let cells = row.iter().zip(&class).enumerate().map(|(i, (cell, class))| match i {
            0 => format!("<th scope=\"row\"{class}>{}</th>", escape(cell)),
            _ => format!("<td{class}>{}</td>", escape(cell)),
        });
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let rows: String = table.rows.iter().map(row).collect();
    format!(
        "<div class=\"table\" role=\"region\" tabindex=\"0\" aria-label=\"{caption}\">\n<table>\n\
         <caption>{caption}</caption>\n<thead><tr>{header}</tr></thead>\n\
         <tbody>\n{rows}</tbody>\n</table>\n</div>\n",
        caption = escape(&table.caption)
    )
}

/// Whether a table's cell reads as a quantity: `0.5`, `-3 %`, `12 s`, or a dash for none.
fn is_number(cell: &str) -> bool {
    let cell = cell.trim();
    matches!(cell, "" | "-" | "\u{2013}" | "\u{2014}")
        || cell
            .trim_start_matches(['-', '+', '\u{2212}', '\u{00b1}', '.'])
            .starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bar, Curves, Scale, Series};
    use lapflow_demo::{CLASSES, render};

    /// A page with every kind of block, with `text` wherever text can stand.
    fn page(text: &str) -> Report {
        let text = || text.to_owned();
        let wave =
            |phase: f64| (0..500).map(|i| (i as f64, 2.0 + (i as f64 + phase).sin())).collect();
        let row = |class: usize| PictureRow {
            label: text(),
            pictures: (0..3).map(|seed| render(class, seed, 16).into()).collect(),
        };
        let blocks = vec![
            Block::Text(text()),
            Block::Facts(vec![Fact { name: text(), value: text() }]),
            Block::Figure(Figure {
                caption: text(),
                rows: (0..CLASSES.len()).map(row).collect(),
                zoom: Zoom::Pixels,
            }),
            Block::Figure(Figure { caption: text(), rows: vec![], zoom: Zoom::Smooth }),
            Block::Curves(Curves {
                caption: text(),
                x_label: text(),
                y_label: text(),
                y_scale: Scale::Log,
                smoothing: 0.05,
                series: vec![
                    Series { name: text(), points: wave(0.0) },
                    Series { name: text(), points: vec![(0.0, f64::NAN)] },
                ],
            }),
            Block::Bars(Bars {
                caption: text(),
                bars: [1.0, 0.5, 0.0, f64::NAN]
                    .map(|value| Bar { label: text(), value, text: text() })
                    .into(),
            }),
            Block::Table(Table {
                caption: text(),
                header: vec![text(), text()],
                rows: vec![vec![text(), text()], vec![text()]],
            }),
        ];
        Report {
            title: text(),
            subtitle: text(),
            sections: vec![Section { title: text(), blocks }],
        }
    }

    /// Checks that the tags of `html` nest and that quotes pair up; returns how many tags there are.
    fn count_tags(html: &str) -> usize {
        let html = html.replace(STYLE, "");
        let mut open = Vec::new();
        let mut count = 0;
        for piece in html.trim_start_matches("<!DOCTYPE html>").split('<').skip(1) {
            let (tag, text) = piece.split_once('>').expect("a tag ends");
            assert!(!text.contains(['>', '"', '\'']), "unescaped character in {text:?}");
            assert!(tag.matches('"').count() % 2 == 0, "unpaired quotes in <{tag}>");
            let name = tag.trim_matches('/').split_whitespace().next().expect("a tag has a name");
            match (tag.starts_with('/'), tag.ends_with('/')) {
                (true, _) => assert_eq!(open.pop(), Some(name), "closed by <{tag}>"),
                (false, true) => (),
                (false, false) => open.push(name),
            }
            count += 1;
        }
        assert!(open.is_empty(), "left open: {open:?}");
        count
    }

    #[test]
    fn tags_nest_and_no_text_becomes_one() {
        let plain = count_tags(&render_html(&page("plain")));
        assert!(plain > 100);
        for hostile in ["</style><script>\"'", "&<b a=\"", "--> ]]> '", "", "\u{0}\u{1b}\u{1f98a}"]
        {
            let html = render_html(&page(hostile));
            assert_eq!(count_tags(&html), plain, "{hostile:?}");
            assert!(!html.contains('\u{0}'));
        }
        assert_eq!(escape("a < b & 'c' > \"d\""), "a &lt; b &amp; &#39;c&#39; &gt; &quot;d&quot;");
    }

    #[test]
    fn a_page_refers_to_nothing_outside_itself() {
        let html = render_html(&page("plain"));
        assert!(!html.contains("http") && !html.contains("url(") && !html.contains("<script"));
        let sources: Vec<_> = html.split("src=\"").skip(1).collect();
        assert_eq!(sources.len(), CLASSES.len() * 3);
        assert!(sources.iter().all(|source| source.starts_with("data:image/png;base64,")));
    }

    #[test]
    fn pictures_come_through_unchanged() {
        let html = render_html(&page("plain"));
        let encoded = html.split("base64,").nth(1).and_then(|rest| rest.split('"').next());
        let png = STANDARD.decode(encoded.expect("a picture")).expect("base64");
        let picture = image::load_from_memory(&png).expect("a PNG").into_rgb8();
        assert_eq!(picture, render(0, 0, 16));
    }

    #[test]
    fn an_empty_report_is_a_page() {
        let report = Report { title: "Nothing".into(), subtitle: String::new(), sections: vec![] };
        assert!(count_tags(&render_html(&report)) > 5);
    }

    #[test]
    fn bars_are_shares_of_the_longest() {
        let html = render_html(&page("plain"));
        let widths: Vec<_> =
            html.split("width:").filter_map(|rest| rest.split_once("%\"></i>")).collect();
        let widths: Vec<_> = widths.iter().map(|(width, _)| *width).collect();
        assert_eq!(widths, ["100.00", "50.00", "0.00", "0.00"]);
    }

    #[test]
    fn quantities_are_told_from_names() {
        for cell in ["0.5", "-3 %", "\u{2212}.5", "12 s", "", "\u{2013}", "1e-5"] {
            assert!(is_number(cell), "{cell:?}");
        }
        for cell in ["level 0", "DiT-B/2", "n/a", "- x"] {
            assert!(!is_number(cell), "{cell:?}");
        }
    }
}
