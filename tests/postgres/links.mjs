// Makes the symbolic links between libraries that an npm package cannot carry; the packages list
// them. Their own install scripts are not run. Usage: node links.mjs PACKAGE_DIRECTORY…
import { existsSync, lstatSync, readFileSync, symlinkSync } from 'node:fs'
import { basename, dirname, join, resolve, sep } from 'node:path'

for (const directory of process.argv.slice(2)) {
  const list = join(directory, 'native', 'pg-symlinks.json')
  for (const { source, target } of JSON.parse(readFileSync(list, 'utf8'))) {
    const [file, link] = [source, target].map((path) => resolve(directory, path))
    const inside = [file, link].every((path) => path.startsWith(resolve(directory) + sep))
    if (!inside || dirname(file) !== dirname(link) || !existsSync(file)) {
      throw new Error(`${list} lists ${target} -> ${source}`)
    }
    if (lstatSync(link, { throwIfNoEntry: false })) continue
    symlinkSync(basename(file), link)
  }
}
