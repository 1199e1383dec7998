//! Which fields each major version writes for each node that is read, in their order.

use std::ops::RangeInclusive;

/// The major versions whose trees are read.
pub const MAJORS: &[u16] = &[14, 15, 16, 17, 18];

/// The fields of a node as that major version writes them, one set for each kind of it; none where
/// it writes no such node or the node is not read.
pub(super) fn written(name: &str, major: u16) -> impl Iterator<Item = &'static str> {
    FIELDS
        .iter()
        .filter(move |(known, majors, _)| *known == name && majors.contains(&major))
        .map(|(_, _, fields)| *fields)
}

const ALL: RangeInclusive<u16> = 14..=18;

/// What an `OpExpr` is written with, and its two kin.
const OPERATION: &str = "opno opfuncid opresulttype opretset opcollid inputcollid args location";

/// What a `CaseExpr` is written with; likewise below for the others whose name changed.
const CASE: &str = "casetype casecollid arg args defresult location";
const WHEN: &str = "expr result location";
const COALESCE: &str = "coalescetype coalescecollid args location";
const MINMAX: &str = "minmaxtype minmaxcollid inputcollid op args location";
const COLLATE: &str = "arg collOid location";
const ARRAY: &str = "array_typeid array_collid element_typeid elements multidims location";

/// What a table in FROM is written with; from 16 on its rights stand elsewhere.
const TABLE: &str = "alias eref rtekind relid relkind rellockmode tablesample lateral inh inFromCl \
    requiredPerms checkAsUser selectedCols insertedCols updatedCols extraUpdatedCols securityQuals";

/// The same of a sub-select in FROM, of a join and of a name that WITH gives.
const SUBQUERY: &str = "alias eref rtekind subquery security_barrier lateral inh inFromCl \
    requiredPerms checkAsUser selectedCols insertedCols updatedCols extraUpdatedCols securityQuals";
const JOIN: &str = "alias eref rtekind jointype joinmergedcols joinaliasvars joinleftcols \
    joinrightcols join_using_alias lateral inh inFromCl requiredPerms checkAsUser selectedCols \
    insertedCols updatedCols extraUpdatedCols securityQuals";
const CTE: &str = "alias eref rtekind ctename ctelevelsup self_reference coltypes coltypmods \
    colcollations lateral inh inFromCl requiredPerms checkAsUser selectedCols insertedCols \
    updatedCols extraUpdatedCols securityQuals";
/// The same of a function in FROM.
const CALLED: &str = "alias eref rtekind functions funcordinality lateral inh inFromCl \
    requiredPerms checkAsUser selectedCols insertedCols updatedCols extraUpdatedCols securityQuals";

/// Name, major versions, fields. PostgreSQL 14 writes some names without their "Expr".
const FIELDS: &[(&str, RangeInclusive<u16>, &str)] = &[
    (
        "AGGREF",
        14..=15,
        "aggfnoid aggtype aggcollid inputcollid aggtranstype aggargtypes aggdirectargs args \
         aggorder aggdistinct aggfilter aggstar aggvariadic aggkind agglevelsup aggsplit aggno \
         aggtransno location",
    ),
    (
        "AGGREF",
        16..=18,
        "aggfnoid aggtype aggcollid inputcollid aggtranstype aggargtypes aggdirectargs args \
         aggorder aggdistinct aggfilter aggstar aggvariadic aggkind aggpresorted agglevelsup \
         aggsplit aggno aggtransno location",
    ),
    ("ARRAY", 14..=14, ARRAY),
    ("ARRAYEXPR", 15..=17, ARRAY),
    (
        "ARRAYEXPR",
        18..=18,
        "array_typeid array_collid element_typeid elements multidims list_start list_end location",
    ),
    (
        "ARRAYCOERCEEXPR",
        ALL,
        "arg elemexpr resulttype resulttypmod resultcollid coerceformat location",
    ),
    ("ALIAS", ALL, "aliasname colnames"),
    ("BOOLEANTEST", ALL, "arg booltesttype location"),
    ("BOOLEXPR", ALL, "boolop args location"),
    ("CASE", 14..=14, CASE),
    ("CASEEXPR", 15..=18, CASE),
    ("CASETESTEXPR", ALL, "typeId typeMod collation"),
    ("WHEN", 14..=14, WHEN),
    ("CASEWHEN", 15..=18, WHEN),
    ("COALESCE", 14..=14, COALESCE),
    ("COALESCEEXPR", 15..=18, COALESCE),
    (
        "COERCEVIAIO",
        ALL,
        "arg resulttype resultcollid coerceformat location",
    ),
    ("COLLATE", 14..=14, COLLATE),
    ("COLLATEEXPR", 15..=18, COLLATE),
    (
        "COMMONTABLEEXPR",
        ALL,
        "ctename aliascolnames ctematerialized ctequery search_clause cycle_clause location \
         cterecursive cterefcount ctecolnames ctecoltypes ctecoltypmods ctecolcollations",
    ),
    (
        "CONST",
        ALL,
        "consttype consttypmod constcollid constlen constbyval constisnull location constvalue",
    ),
    ("DISTINCTEXPR", ALL, OPERATION),
    (
        "FIELDSELECT",
        ALL,
        "arg fieldnum resulttype resulttypmod resultcollid",
    ),
    ("FROMEXPR", ALL, "fromlist quals"),
    (
        "FUNCEXPR",
        ALL,
        "funcid funcresulttype funcretset funcvariadic funcformat funccollid inputcollid args \
         location",
    ),
    (
        "JOINEXPR",
        ALL,
        "jointype isNatural larg rarg usingClause join_using_alias quals alias rtindex",
    ),
    ("MINMAX", 14..=14, MINMAX),
    ("MINMAXEXPR", 15..=18, MINMAX),
    ("NAMEDARGEXPR", ALL, "arg name argnumber location"),
    ("NULLIFEXPR", ALL, OPERATION),
    ("NULLTEST", ALL, "arg nulltesttype argisrow location"),
    ("OPEXPR", ALL, OPERATION),
    (
        "PARAM",
        ALL,
        "paramkind paramid paramtype paramtypmod paramcollid location",
    ),
    (
        "QUERY",
        14..=14,
        "commandType querySource canSetTag utilityStmt resultRelation hasAggs hasWindowFuncs \
         hasTargetSRFs hasSubLinks hasDistinctOn hasRecursive hasModifyingCTE hasForUpdate \
         hasRowSecurity isReturn cteList rtable jointree targetList override onConflict \
         returningList groupClause groupDistinct groupingSets havingQual windowClause \
         distinctClause sortClause limitOffset limitCount limitOption rowMarks setOperations \
         constraintDeps withCheckOptions stmt_location stmt_len",
    ),
    (
        "QUERY",
        15..=15,
        "commandType querySource canSetTag utilityStmt resultRelation hasAggs hasWindowFuncs \
         hasTargetSRFs hasSubLinks hasDistinctOn hasRecursive hasModifyingCTE hasForUpdate \
         hasRowSecurity isReturn cteList rtable jointree targetList override onConflict \
         returningList groupClause groupDistinct groupingSets havingQual windowClause \
         distinctClause sortClause limitOffset limitCount limitOption rowMarks setOperations \
         constraintDeps withCheckOptions mergeActionList mergeUseOuterJoin stmt_location stmt_len",
    ),
    (
        "QUERY",
        16..=16,
        "commandType querySource canSetTag utilityStmt resultRelation hasAggs hasWindowFuncs \
         hasTargetSRFs hasSubLinks hasDistinctOn hasRecursive hasModifyingCTE hasForUpdate \
         hasRowSecurity isReturn cteList rtable rteperminfos jointree mergeActionList \
         mergeUseOuterJoin targetList override onConflict returningList groupClause \
         groupDistinct groupingSets havingQual windowClause distinctClause sortClause \
         limitOffset limitCount limitOption rowMarks setOperations constraintDeps \
         withCheckOptions stmt_location stmt_len",
    ),
    (
        "QUERY",
        17..=17,
        "commandType querySource canSetTag utilityStmt resultRelation hasAggs hasWindowFuncs \
         hasTargetSRFs hasSubLinks hasDistinctOn hasRecursive hasModifyingCTE hasForUpdate \
         hasRowSecurity isReturn cteList rtable rteperminfos jointree mergeActionList \
         mergeTargetRelation mergeJoinCondition targetList override onConflict returningList \
         groupClause groupDistinct groupingSets havingQual windowClause distinctClause \
         sortClause limitOffset limitCount limitOption rowMarks setOperations constraintDeps \
         withCheckOptions stmt_location stmt_len",
    ),
    (
        "QUERY",
        18..=18,
        "commandType querySource canSetTag utilityStmt resultRelation hasAggs hasWindowFuncs \
         hasTargetSRFs hasSubLinks hasDistinctOn hasRecursive hasModifyingCTE hasForUpdate \
         hasRowSecurity hasGroupRTE isReturn cteList rtable rteperminfos jointree \
         mergeActionList mergeTargetRelation mergeJoinCondition targetList override onConflict \
         returningOldAlias returningNewAlias returningList groupClause groupDistinct \
         groupingSets havingQual windowClause distinctClause sortClause limitOffset limitCount \
         limitOption rowMarks setOperations constraintDeps withCheckOptions stmt_location \
         stmt_len",
    ),
    ("RTE", 14..=14, TABLE),
    ("RTE", 14..=14, SUBQUERY),
    ("RTE", 14..=14, JOIN),
    ("RTE", 14..=14, CTE),
    ("RTE", 14..=14, CALLED),
    ("RANGETBLENTRY", 15..=15, CALLED),
    (
        "RANGETBLENTRY",
        16..=16,
        "alias eref rtekind functions funcordinality lateral inh inFromCl securityQuals",
    ),
    (
        "RANGETBLENTRY",
        17..=18,
        "alias eref rtekind functions funcordinality lateral inFromCl securityQuals",
    ),
    (
        "RANGETBLFUNCTION",
        ALL,
        "funcexpr funccolcount funccolnames funccoltypes funccoltypmods funccolcollations \
         funcparams",
    ),
    ("RANGETBLENTRY", 15..=15, TABLE),
    ("RANGETBLENTRY", 15..=15, SUBQUERY),
    ("RANGETBLENTRY", 15..=15, JOIN),
    ("RANGETBLENTRY", 15..=15, CTE),
    (
        "RANGETBLENTRY",
        16..=16,
        "alias eref rtekind subquery security_barrier relid relkind rellockmode perminfoindex \
         lateral inh inFromCl securityQuals",
    ),
    (
        "RANGETBLENTRY",
        17..=18,
        "alias eref rtekind subquery security_barrier relid inh relkind rellockmode \
         perminfoindex lateral inFromCl securityQuals",
    ),
    (
        "RANGETBLENTRY",
        16..=16,
        "alias eref rtekind jointype joinmergedcols joinaliasvars joinleftcols joinrightcols \
         join_using_alias lateral inh inFromCl securityQuals",
    ),
    (
        "RANGETBLENTRY",
        17..=18,
        "alias eref rtekind jointype joinmergedcols joinaliasvars joinleftcols joinrightcols \
         join_using_alias lateral inFromCl securityQuals",
    ),
    (
        "RANGETBLENTRY",
        16..=16,
        "alias eref rtekind ctename ctelevelsup self_reference coltypes coltypmods \
         colcollations lateral inh inFromCl securityQuals",
    ),
    (
        "RANGETBLENTRY",
        17..=18,
        "alias eref rtekind ctename ctelevelsup self_reference coltypes coltypmods \
         colcollations lateral inFromCl securityQuals",
    ),
    (
        "RANGETBLENTRY",
        16..=16,
        "alias eref rtekind relid relkind rellockmode tablesample perminfoindex lateral inh \
         inFromCl securityQuals",
    ),
    (
        "RANGETBLENTRY",
        17..=18,
        "alias eref rtekind relid inh relkind rellockmode perminfoindex tablesample lateral \
         inFromCl securityQuals",
    ),
    ("RANGETBLREF", ALL, "rtindex"),
    (
        "RELABELTYPE",
        ALL,
        "arg resulttype resulttypmod resultcollid relabelformat location",
    ),
    (
        "RTEPERMISSIONINFO",
        16..=18,
        "relid inh requiredPerms checkAsUser selectedCols insertedCols updatedCols",
    ),
    (
        "SCALARARRAYOPEXPR",
        14..=14,
        "opno opfuncid hashfuncid useOr inputcollid args location",
    ),
    (
        "SCALARARRAYOPEXPR",
        15..=18,
        "opno opfuncid hashfuncid negfuncid useOr inputcollid args location",
    ),
    (
        "SETOPERATIONSTMT",
        ALL,
        "op all larg rarg colTypes colTypmods colCollations groupClauses",
    ),
    (
        "SORTGROUPCLAUSE",
        14..=17,
        "tleSortGroupRef eqop sortop nulls_first hashable",
    ),
    (
        "SORTGROUPCLAUSE",
        18..=18,
        "tleSortGroupRef eqop sortop reverse_sort nulls_first hashable",
    ),
    ("SQLVALUEFUNCTION", ALL, "op type typmod location"),
    (
        "SUBLINK",
        ALL,
        "subLinkType subLinkId testexpr operName subselect location",
    ),
    (
        "SUBSCRIPTINGREF",
        ALL,
        "refcontainertype refelemtype refrestype reftypmod refcollid refupperindexpr \
         reflowerindexpr refexpr refassgnexpr",
    ),
    (
        "TARGETENTRY",
        ALL,
        "expr resno resname ressortgroupref resorigtbl resorigcol resjunk",
    ),
    (
        "VAR",
        14..=15,
        "varno varattno vartype vartypmod varcollid varlevelsup varnosyn varattnosyn location",
    ),
    (
        "VAR",
        16..=17,
        "varno varattno vartype vartypmod varcollid varnullingrels varlevelsup varnosyn \
         varattnosyn location",
    ),
    (
        "VAR",
        18..=18,
        "varno varattno vartype vartypmod varcollid varnullingrels varlevelsup varreturningtype \
         varnosyn varattnosyn location",
    ),
];
